"""Generation with an ordinary transformers model, on any device.

A group's prompt goes through the model once; its keys and values are then repeated for the samples. A finished sample
leaves the batch at once, and a waiting one takes its place. Randomness is one number per sequence and position, from
the sequence's own seed, so neither the other sequences nor the random state of the program matter.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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
from posttrain.generation.local.speculation import Speculation
from posttrain.generation.weights import put
from posttrain.network.image_reader import reader_of
from posttrain.network.routing import Routers


class HfGenerator:
    """Completes prompts with a transformers causal language model, with or without an adapter.

    No completion is running between two calls, so there is nothing to pause or to drain.
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
        routers: Routers | None = None,
        speculation: Speculation | None = None,
    ):
        """Wrap ``model``, whose weights may change between calls; ``own_weights`` if only ``accept`` changes them.

        ``stop_ids`` are all tokens that end a completion. At most ``batch_size`` completions run at one time, with keys
        and values of at most ``cache_tokens`` tokens, padding included (None: as many as a quarter of the memory
        holds); the others wait. Between calls whose texts continue earlier ones, those of ``prefix_tokens`` tokens are
        kept (None: as many as an eighth of the memory holds). ``routers`` of the model: their choices are recorded.
        ``speculation`` changes how fast completions are made.
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
        self.speculation = speculation
        self.abilities = Abilities(
            own_weights, adapters=True, exact=True, sessions=True, images=reader_of(tokenizer) is not None
        )
        self.version = -1
        """Version of the weights; -1 before any were accepted, and then completions carry none."""
        self._network = Network(model, reader_of(tokenizer), routers)

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
        with self.sampling():
            self.decoder(sampling).run(groups)
        return [[sample.completion(self.tokenizer) for sample in own] for own in samples]

    def groups(
        self,
        prompts: list[Tensor],
        sampling: Sampling,
        seeds: list[list[int]],
        images: list[list[Image]] | None = None,
    ) -> tuple[list[Group], list[list[Sample]]]:
        """Return new samples, in groups for a decoder and by prompt in the order of the call."""
        samples: list[list[Sample]] = []
        for index, (prompt, own) in enumerate(zip(prompts, seeds, strict=True)):
            pictures = tuple(images[index]) if images is not None else ()
            shift = self._network.shift(Sequence(prompt, prompt < 0, images=pictures)) if pictures else 0
            limit = self.limit(index, prompt, sampling)
            samples.append(
                [Sample(index, prompt, random.Random(seed), limit, images=pictures, shift=shift) for seed in own]
            )
            if self.speculation is not None:
                self.speculation.begin(prompt, samples[-1], pictures)
        groups = [Group(prompt, own) for prompt, own in zip(prompts, samples, strict=True) if own]
        groups.sort(key=lambda group: group.text.numel())  # stable: prompts of similar length are read together
        return groups, samples

    def decoder(self, sampling: Sampling) -> Decoder:
        """Build the decoder for these settings; it must run inside ``sampling()``."""
        stops = Stops(self.stop_ids, sampling.stop, self.tokenizer)
        prefixes = self.prefixes if sampling.continued and self.prefixes.budget != 0 else None
        limits = self.batch_size, self.cache_tokens
        return Decoder(self._network, sampling, stops, *limits, self.version, prefixes, self.speculation)

    @contextmanager
    def session(self, sampling: Sampling) -> Iterator[Session]:
        """Open a session whose completions are requested and taken between tokens; its cache is freed at the end."""
        try:
            with self.sampling():
                yield Session(self, sampling)
        finally:
            self.prefixes.clear()

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Put the model, and a draft model, into the state that sampling needs."""
        with self._network.sampling(), nullcontext() if self.speculation is None else self.speculation.sampling():
            yield

    def accept(self, weights: Weights) -> None:
        """Copy the weights into the generator's model; the trainer's own model needs no copy."""
        if self.abilities.own_weights:
            put(self.model, weights)
        self.prefixes.clear()
        self.version = weights.version

    def pause(self) -> None:
        """Do nothing: no completion runs between two calls."""

    def resume(self) -> None:
        """Do nothing: nothing was paused."""

    def drain(self) -> None:
        """Do nothing: no completion runs between two calls."""

    def health(self) -> Health:
        """Return the version; a generator in this process is always alive."""
        return Health(self.version, facts={} if self.speculation is None else self.speculation.facts())

    def revive(self) -> None:
        """Do nothing: the generator ends with this process."""

    def close(self) -> None:
        """Do nothing: the model belongs to the trainer."""

    def limit(self, index: int, prompt: Tensor, sampling: Sampling) -> int:
        """Return the token limit of the completion of ``prompt``."""
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
    """Running completions that others may join at any token. Made by ``HfGenerator.session``."""

    def __init__(self, generator: HfGenerator, sampling: Sampling):
        """Start without completions."""
        self._generator, self._sampling = generator, sampling
        self._decoder = generator.decoder(sampling)
        self._open: list[tuple[Any, Sample]] = []

    @property
    def busy(self) -> bool:
        """Whether any completion is running."""
        return bool(self._open)

    def ask(self, asked: list[tuple[Any, Sequence, int, int]]) -> None:
        """Request completions: the owner of each, its text with its images, its seed, and its token limit."""
        places: dict[bytes, list[tuple[Any, int, int]]] = {}
        texts: dict[bytes, Sequence] = {}
        for what, text, seed, limit in asked:
            key = text.content.numpy().tobytes()
            texts[key] = text
            places.setdefault(key, []).append((what, seed, limit))
        groups, samples = self._generator.groups(
            [text.ids for text in texts.values()],
            self._sampling,
            [[seed for _, seed, _ in own] for own in places.values()],
            [list(text.images) for text in texts.values()],
        )
        for own, made in zip(places.values(), samples, strict=True):
            for (what, _, limit), sample in zip(own, made, strict=True):
                sample.limit = min(sample.limit, limit)
                self._open.append((what, sample))
        self._decoder.add(groups)

    def advance(self) -> list[tuple[Any, Completion]]:
        """Make one token of each completion; return the finished ones with their owners."""
        self._decoder.advance()
        ended = [(what, sample) for what, sample in self._open if not sample.alive]
        self._open = [(what, sample) for what, sample in self._open if sample.alive]
        return [(what, sample.completion(self._generator.tokenizer)) for what, sample in ended]


def refuse_images(images: list[list[Any]] | None) -> None:
    """Raise SettingsError where a prompt has images."""
    if images is not None and any(images):
        raise SettingsError(
            "Prompts have images, which this generator cannot show to a model. Sample with --generation hf, or "
            "vllm, and a vision-language model that has its processor."
        )
