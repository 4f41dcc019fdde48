"""Known in advance: does a run fit, what holds its memory, how much does it compute. Nothing is allocated."""
