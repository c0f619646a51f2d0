"""Defenses, one paper per file: robust rules, and filters that say who stays."""
