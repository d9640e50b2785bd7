"""Data set checks, preparation and loading, and the digit scenes."""
