"""Generation: backends that complete prompts. ``protocol`` says what they answer, ``hf`` runs anywhere."""

from posttrain.generation.protocol import Abilities, Completion, Generator, Health, Sampling, Weights

__all__ = ["Abilities", "Completion", "Generator", "Health", "Sampling", "Weights"]
