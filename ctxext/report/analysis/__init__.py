"""What the records say, as numbers: comparisons, intervals, controls, effective context."""
