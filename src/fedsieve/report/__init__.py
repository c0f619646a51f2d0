"""From records to tables and figures; runs nothing."""
