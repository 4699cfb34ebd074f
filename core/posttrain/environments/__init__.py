"""Environments: tasks with rows and a scorer."""
