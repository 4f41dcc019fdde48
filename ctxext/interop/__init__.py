"""Formats, both directions. What cannot be written down in one is refused with the reason, never dropped."""
