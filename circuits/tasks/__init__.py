"""Built-in behaviours."""
