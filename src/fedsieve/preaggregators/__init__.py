"""Pre-aggregators, one paper per file: updates [n, d] to updates [n, d], before detectors and aggregators see them."""
