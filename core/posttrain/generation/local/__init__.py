"""Generation by transformers models, in the trainer's process or in a separate one."""
