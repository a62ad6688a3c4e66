"""Saved models: our own, and public checkpoints of the paper's authors."""
