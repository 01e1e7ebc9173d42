"""The demonstration: its model and ratings fetched, the whole loop run on them, the report."""
