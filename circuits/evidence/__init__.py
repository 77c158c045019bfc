"""What is measured of a circuit, and how sure it is."""
