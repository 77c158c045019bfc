"""Diagrams, curves and heat maps."""
