"""From settings to a run that is ready to start: check, plan, estimate, build."""
