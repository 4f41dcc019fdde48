"""What a run needs, known before it is launched: memory, operations, time. Nothing is allocated."""
