"""Data formats, written and read back."""
