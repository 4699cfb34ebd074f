"""Assembly of a run from settings: check, plan, estimate, build."""
