"""Building blocks of tasks: needles, placement in a haystack, vocabularies and scores."""
