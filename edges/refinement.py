"""Looking into a node: its neurons, or its experts, as writers and readers of their own."""
