"""Attacks of malicious clients: one paper per file, beside attacks made of other attacks."""
