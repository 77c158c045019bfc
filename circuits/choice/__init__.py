"""Which edges a circuit keeps."""
