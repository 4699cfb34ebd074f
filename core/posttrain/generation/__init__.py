"""Generation: backends that complete prompts. ``protocol`` says what they answer, ``hf`` runs anywhere."""

from posttrain.generation.protocol import Completion, Generator, Sampling

__all__ = ["Completion", "Generator", "Sampling"]
