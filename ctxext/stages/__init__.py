"""The stages of a run: how long each will take, and how long each took."""
