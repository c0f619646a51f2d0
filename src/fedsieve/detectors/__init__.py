"""Detectors, one method per file or folder: which clients stay."""
