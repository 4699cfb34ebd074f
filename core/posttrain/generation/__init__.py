"""Generation: backends that complete prompts. ``backends`` chooses one; ``contract.generation`` is their protocol."""
