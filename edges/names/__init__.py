"""What exists in a model and how it is called. No torch."""
