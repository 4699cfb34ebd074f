"""API of method authors, under semantic versioning: hooks, views, rollouts, tensors, prompts, samples."""
