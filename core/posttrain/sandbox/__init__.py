"""Sandbox for untrusted programs: isolated, without a network or files, within limits, and never run anywhere else."""
