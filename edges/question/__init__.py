"""What is asked: prompt pairs, metric, direction, where patched values come from."""
