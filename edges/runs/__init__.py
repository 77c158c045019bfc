"""Running a model over pairs, and what runs leave behind."""
