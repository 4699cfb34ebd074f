"""Programs that nobody has read: run apart, without a network or files, within limits, and never anywhere else."""
