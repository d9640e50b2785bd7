"""Data sets that the project makes for itself."""
