"""Generation by vLLM, in the trainer's process or behind servers."""
