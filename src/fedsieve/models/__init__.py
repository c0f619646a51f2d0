"""Model architectures, any module as functions of a flat vector, and losses."""
