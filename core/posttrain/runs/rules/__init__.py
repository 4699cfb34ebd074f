"""Rules: checks for what looks wrong in a run, each from its history, its card and its plan alone."""
