"""Generation with an ordinary transformers model, on any device.

A group's prompt goes through the model once; its keys and values are then repeated for the samples. A sample that is
done leaves the batch at once, and one that waits takes its place. Randomness is one number per sequence and position,
from the sequence's own seed, so neither the other sequences nor the random state of the program matter.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor

from posttrain.contract.generation import Abilities, Completion, Health, Sampling, Weights
from posttrain.contract.images import Image
from posttrain.contract.views import Sequence
from posttrain.errors import DataError, SettingsError
from posttrain.generation.local.decoder import Decoder, Group
from posttrain.generation.local.prefill import Network
from posttrain.generation.local.prefixes import Prefixes
from posttrain.generation.local.sample import Sample, Stops
from posttrain.generation.weights import put
from posttrain.network.image_reader import reader_of


class HfGenerator:
    """Completes prompts with a transformers causal language model, with or without an adapter around it.

    Nothing is in the making between two calls, so there is nothing to pause or to drain.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        stop_ids: set[int],
        batch_size: int,
        cache_tokens: int | None = None,
        own_weights: bool = False,
        prefix_tokens: int | None = None,
    ):
        """Wrap ``model``, whose weights may go on changing between calls; ``own_weights`` if only ``accept`` does that.

        ``stop_ids`` are all tokens that end a completion; at most ``batch_size`` completions are in the making at one
        time, and they keep the keys and values of at most ``cache_tokens`` tokens, padding included (None: as many as a
        quarter of the memory holds). The others wait. Between calls that go on from each other, those of
        ``prefix_tokens`` tokens are kept (None: as many as an eighth of the memory holds).
        """
        limits = {"generation-batch-size": (batch_size, 1), "generation-cache-tokens": (cache_tokens, 1)}
        for name, (value, least) in (limits | {"generation-prefix-tokens": (prefix_tokens, 0)}).items():
            if value is not None and value < least:
                raise SettingsError(f"{name} is {value}. It must be {least} or more.")
        self.model = model
        self.tokenizer = tokenizer
        self.stop_ids = frozenset(stop_ids)
        self.batch_size = batch_size
        self.cache_tokens = cache_tokens
        self.prefixes = Prefixes(prefix_tokens)
        self.abilities = Abilities(
            own_weights, adapters=True, exact=True, sessions=True, images=reader_of(tokenizer) is not None
        )
        self.version = -1
        """Of the weights; -1 before any were accepted, and then completions carry none."""
        self._network = Network(model, reader_of(tokenizer))

    def generate(
        self,
        prompts: list[Tensor],
        sampling: Sampling,
        seeds: list[list[int]],
        images: list[list[Any]] | None = None,
    ) -> list[list[Completion]]:
        """Complete each prompt ``(n,)`` once per seed. Raises DataError for prompts that leave no room for an answer.

        Seeds are integers of any size, not negative.
        """
        if self._network.images is None:
            refuse_images(images)
        groups, samples = self.groups(prompts, sampling, seeds, images)
        with self._network.sampling():
            self.decoder(sampling).run(groups)
        return [[sample.completion(self.tokenizer) for sample in own] for own in samples]

    def groups(
        self,
        prompts: list[Tensor],
        sampling: Sampling,
        seeds: list[list[int]],
        images: list[list[Image]] | None = None,
    ) -> tuple[list[Group], list[list[Sample]]]:
        """Samples that have no token yet, in groups for a decoder, and by prompt as they were asked for."""
        samples: list[list[Sample]] = []
        for index, (prompt, own) in enumerate(zip(prompts, seeds, strict=True)):
            pictures = tuple(images[index]) if images is not None else ()
            shift = self._network.shift(Sequence(prompt, prompt < 0, images=pictures)) if pictures else 0
            limit = self.limit(index, prompt, sampling)
            samples.append(
                [Sample(index, prompt, random.Random(seed), limit, images=pictures, shift=shift) for seed in own]
            )
        groups = [Group(prompt, own) for prompt, own in zip(prompts, samples, strict=True) if own]
        groups.sort(key=lambda group: group.text.numel())  # stable: prompts of like length are read together
        return groups, samples

    def decoder(self, sampling: Sampling) -> Decoder:
        """What completes groups with these settings; it is to run inside ``sampling()``."""
        stops = Stops(self.stop_ids, sampling.stop, self.tokenizer)
        prefixes = self.prefixes if sampling.continued and self.prefixes.budget != 0 else None
        return Decoder(self._network, sampling, stops, self.batch_size, self.cache_tokens, self.version, prefixes)

    @contextmanager
    def session(self, sampling: Sampling) -> Iterator[Session]:
        """Answers that are asked for and taken between two tokens; keys and values are forgotten at the end."""
        try:
            with self._network.sampling():
                yield Session(self, sampling)
        finally:
            self.prefixes.clear()

    def sampling(self) -> AbstractContextManager[None]:
        """The model in the state that sampling needs."""
        return self._network.sampling()

    def accept(self, weights: Weights) -> None:
        """The trainer's own weights need no copy."""
        if self.abilities.own_weights:
            put(self.model, weights)
        self.prefixes.clear()
        self.version = weights.version

    def pause(self) -> None:
        """Nothing to do."""

    def resume(self) -> None:
        """Nothing to do."""

    def drain(self) -> None:
        """Nothing to do."""

    def health(self) -> Health:
        """Always well."""
        return Health(self.version)

    def revive(self) -> None:
        """It lives as long as this process."""

    def close(self) -> None:
        """Nothing to do."""

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


class Session:
    """Answers in the making that others may join at any token. Made by ``HfGenerator.session``."""

    def __init__(self, generator: HfGenerator, sampling: Sampling):
        """Nothing is asked for yet."""
        self._generator, self._sampling = generator, sampling
        self._decoder = generator.decoder(sampling)
        self._open: list[tuple[Any, Sample]] = []

    @property
    def busy(self) -> bool:
        """Whether anything is in the making."""
        return bool(self._open)

    def ask(self, asked: list[tuple[Any, Tensor, int, int]]) -> None:
        """Ask for answers: what each is for, the text ``(n,)``, its seed, and how many tokens it may have."""
        places: dict[bytes, list[tuple[Any, int, int]]] = {}
        texts: dict[bytes, Tensor] = {}
        for what, text, seed, limit in asked:
            key = text.numpy().tobytes()
            texts[key] = text
            places.setdefault(key, []).append((what, seed, limit))
        groups, samples = self._generator.groups(
            list(texts.values()), self._sampling, [[seed for _, seed, _ in own] for own in places.values()]
        )
        for own, made in zip(places.values(), samples, strict=True):
            for (what, _, limit), sample in zip(own, made, strict=True):
                sample.limit = min(sample.limit, limit)
                self._open.append((what, sample))
        self._decoder.add(groups)

    def advance(self) -> list[tuple[Any, Completion]]:
        """Make one token of each answer; those that have ended, with what they are for."""
        self._decoder.advance()
        ended = [(what, sample) for what, sample in self._open if not sample.alive]
        self._open = [(what, sample) for what, sample in self._open if sample.alive]
        return [(what, sample.completion(self._generator.tokenizer)) for what, sample in ended]


def refuse_images(images: list[list[Any]] | None) -> None:
    """Raise SettingsError where a prompt has images."""
    if images is not None and any(images):
        raise SettingsError(
            "Prompts have images, which this generator cannot show to a model. Sample with --generation hf and a "
            "vision-language model that has its processor."
        )
