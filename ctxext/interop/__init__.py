"""Checkpoint formats, read and written.

What a format cannot represent is refused with the reason, never dropped.
"""
