"""A transformer as functions between residual streams."""
