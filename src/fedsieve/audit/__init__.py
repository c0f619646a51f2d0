"""Which site of a federation is off: evidence from its training, its rows and the other sites, and a verdict."""
