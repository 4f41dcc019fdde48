"""Training: the loop, its state and checkpoints, its metrics, and the monitor that watches it."""
