"""The circuit itself, as data: no torch."""
