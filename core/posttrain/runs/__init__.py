"""The run directory and its files: progress, events, checkpoints, facts."""
