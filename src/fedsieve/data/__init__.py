"""Datasets, and who holds which of their samples."""
