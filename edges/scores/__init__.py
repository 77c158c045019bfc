"""Scores: what is estimated by gradients."""
