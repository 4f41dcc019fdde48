"""Training: the loop and its step, state, checkpoints and metrics, and the monitor."""
