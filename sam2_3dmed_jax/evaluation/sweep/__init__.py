"""A sweep: one checkpoint or many, scored under many prompts, thresholds and orders, on features computed once."""
