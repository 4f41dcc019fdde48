"""Analysis: evaluation records to numbers with intervals; no words for people, no drawings."""
