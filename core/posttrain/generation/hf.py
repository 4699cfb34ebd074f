"""Generation with an ordinary transformers model, on any device.

A group's prompt goes through the model once; its keys and values are then repeated for the samples. A sample that is
done leaves the batch at once, and one that waits takes its place. Randomness is one number per sequence and position,
from the sequence's own seed, so neither the other sequences nor the random state of the program matter.
"""

from __future__ import annotations

import random
from typing import Any

from torch import Tensor

from posttrain.errors import DataError, SettingsError
from posttrain.generation.decoder import Decoder, Group
from posttrain.generation.network import Network
from posttrain.generation.protocol import Completion, Sampling
from posttrain.generation.sample import Sample, Stops


class HfGenerator:
    """Completes prompts with a transformers causal language model, with or without an adapter around it."""

    def __init__(
        self, model: Any, tokenizer: Any, stop_ids: set[int], batch_size: int, cache_tokens: int | None = None
    ):
        """Wrap ``model``, whose weights may go on changing between calls.

        ``stop_ids`` are all tokens that end a completion; at most ``batch_size`` completions are in the making at one
        time, and they keep the keys and values of at most ``cache_tokens`` tokens, padding included (None: as many as a
        quarter of the memory holds). The others wait.
        """
        for name, value in (("generation-batch-size", batch_size), ("generation-cache-tokens", cache_tokens)):
            if value is not None and value < 1:
                raise SettingsError(f"{name} is {value}. It must be 1 or more.")
        self.model = model
        self.tokenizer = tokenizer
        self.stop_ids = frozenset(stop_ids)
        self.batch_size = batch_size
        self.cache_tokens = cache_tokens
        self._network = Network(model)

    def generate(self, prompts: list[Tensor], sampling: Sampling, seeds: list[list[int]]) -> list[list[Completion]]:
        """Complete each prompt ``(n,)`` once per seed. Raises DataError for prompts that leave no room for an answer.

        Seeds are integers of any size, not negative.
        """
        samples = [
            [Sample(index, prompt, random.Random(seed), self.limit(index, prompt, sampling)) for seed in own]
            for index, (prompt, own) in enumerate(zip(prompts, seeds, strict=True))
        ]
        groups = [Group(prompt, own) for prompt, own in zip(prompts, samples, strict=True) if own]
        groups.sort(key=lambda group: group.text.numel())  # stable: prompts of like length are read together
        stops = Stops(self.stop_ids, sampling.stop, self.tokenizer)
        with self._network.sampling():
            Decoder(self._network, sampling, stops, self.batch_size, self.cache_tokens).run(groups)
        return [[sample.completion(self.tokenizer) for sample in own] for own in samples]

    def limit(self, index: int, prompt: Tensor, sampling: Sampling) -> int:
        """How many tokens the completion of ``prompt`` may have."""
        length, positions = int(prompt.numel()), self._network.positions
        if length == 0:
            raise DataError(f"prompt {index} has no tokens. Generation needs at least one, for example a start token.")
        if positions is None:
            return sampling.max_new_tokens
        if length >= positions:
            raise DataError(
                f"prompt {index} has {length} tokens and the model {positions} positions, which leaves none for an "
                "answer. Shorten the prompts with --max-length."
            )
        return min(sampling.max_new_tokens, positions - length)
