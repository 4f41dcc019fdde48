"""The needs of a run before it is launched: memory, operations, time. Nothing is allocated."""
