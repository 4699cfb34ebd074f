"""Generation by transformers models, in the trainer's process or in one of its own."""
