"""Models, as functions of a flat vector."""
