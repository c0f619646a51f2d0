"""What the project promises, tried the hard way: ``python -m torture`` breaks things on purpose and counts losses."""
