"""Watching: the run directory, progress, observers."""
