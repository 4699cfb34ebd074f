"""What a method's author sees, under semantic versioning: hooks, views, rollouts, tensors, prompts, samples."""
