"""Datasets, and their partition among the clients."""
