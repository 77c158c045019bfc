"""Effects: what is measured by patching."""
