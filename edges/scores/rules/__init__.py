"""Gradient rules: the runs at which gradients are taken, and what they pass on their way back.

A rule stands in the module of its name, which gives it by ``rule``, and has a line in
``names.vocabulary.GRADIENTS``; that is all there is to adding one.
"""
