"""Web pages: the viewer and the report."""
