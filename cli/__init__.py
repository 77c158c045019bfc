"""The wiremap command."""
