"""Attacks, one paper per file."""
