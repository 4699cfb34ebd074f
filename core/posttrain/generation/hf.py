"""Generation with an ordinary transformers model, on any device.

A group's prompt goes through the model once; its keys and values are then repeated for the samples. Prompts of a wave
are padded on the left, finished sequences leave it. Randomness is one number per sequence and position, from the
sequence's own seed, so neither the other sequences nor the random state of the program matter.
"""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from posttrain.errors import DataError, RunFailed, SettingsError
from posttrain.generation.choice import choose
from posttrain.generation.protocol import Completion, Sampling

#: Share of a wave that must be finished before its keys and values are copied without them.
COMPACT_SHARE = 1 / 8


@dataclass
class _Sample:
    """One completion in the making."""

    prompt: int
    random: random.Random
    limit: int
    """Tokens it may have."""
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finished: bool = False

    @property
    def alive(self) -> bool:
        return not self.finished and len(self.ids) < self.limit


class HfGenerator:
    """Completes prompts with a transformers causal language model, with or without an adapter around it."""

    def __init__(self, model: Any, tokenizer: Any, stop_ids: set[int], batch_size: int):
        """Wrap ``model``, whose weights may go on changing between calls.

        ``stop_ids`` are all tokens that end a completion; at most ``batch_size`` completions are in the making at one
        time, the others wait.
        """
        if batch_size < 1:
            raise SettingsError(f"generation-batch-size is {batch_size}. It must be 1 or more.")
        self.model = model
        self.tokenizer = tokenizer
        self.stop_ids = frozenset(stop_ids)
        self.batch_size = batch_size
        self._accepted = frozenset(inspect.signature(_inner(model).forward).parameters)
        config = _inner(model).config.get_text_config(decoder=True)
        self._positions = getattr(config, "max_position_embeddings", None)  # absent where positions are not learnt

    def generate(self, prompts: list[Tensor], sampling: Sampling, seeds: list[list[int]]) -> list[list[Completion]]:
        """Complete each prompt ``(n,)`` once per seed. Raises DataError for prompts that leave no room for an answer.

        Seeds are integers of any size, not negative.
        """
        samples = [
            [_Sample(index, random.Random(seed), self._limit(index, prompt, sampling)) for seed in own]
            for index, (prompt, own) in enumerate(zip(prompts, seeds, strict=True))
        ]
        # Not inference_mode: tensors that a model or a wrapper caches under it could never take part in training.
        with _evaluating(self.model), torch.no_grad():
            for wave in _waves(prompts, samples, self.batch_size):
                self._complete(prompts, wave, sampling)
        return [[self._completion(sample) for sample in own] for own in samples]

    def _limit(self, index: int, prompt: Tensor, sampling: Sampling) -> int:
        """How many tokens the completion of ``prompt`` may have."""
        length = int(prompt.numel())
        if length == 0:
            raise DataError(f"prompt {index} has no tokens. Generation needs at least one, for example a start token.")
        if self._positions is None:
            return sampling.max_new_tokens
        if length >= self._positions:
            raise DataError(
                f"prompt {index} has {length} tokens and the model {self._positions} positions, which leaves none for "
                "an answer. Shorten the prompts with --max-length."
            )
        return min(sampling.max_new_tokens, self._positions - length)

    def _complete(self, prompts: list[Tensor], samples: list[_Sample], sampling: Sampling) -> None:
        """Run one wave of samples, those of the same prompt next to each other, until all are done."""
        unique = list(dict.fromkeys(sample.prompt for sample in samples))
        lengths = torch.tensor([prompts[index].numel() for index in unique], device=self._device)  # (p,)
        width = int(lengths.max())
        room = max(sample.limit for sample in samples)
        columns = torch.arange(width + room, device=self._device)
        mask = (columns >= (width - lengths)[:, None]).long()  # (p, width + room): 0 on the padding at the left
        ids = torch.zeros(len(unique), width, dtype=torch.long, device=self._device)
        for row, index in enumerate(unique):
            ids[row, width - prompts[index].numel() :] = prompts[index]
        logits, cache = self._forward(ids, mask[:, :width], (mask[:, :width].cumsum(-1) - 1).clamp(min=0), None)

        rows = torch.tensor([unique.index(sample.prompt) for sample in samples], device=self._device)  # (n,)
        logits, mask, positions = logits[rows], mask[rows], lengths[rows][:, None]  # (n, V), (n, .), (n, 1)
        if len(samples) > len(unique):
            cache.reorder_cache(rows)
        while True:
            tokens, logps = choose(logits, sampling, [sample.random.random() for sample in samples])
            self._append(samples, tokens.tolist(), logps.tolist(), sampling.stop)
            keep = [row for row, sample in enumerate(samples) if sample.alive]
            if not keep:
                return
            if len(samples) - len(keep) >= COMPACT_SHARE * len(samples):
                rows = torch.tensor(keep, device=self._device)
                samples = [samples[row] for row in keep]
                tokens, mask, positions = tokens[rows], mask[rows], positions[rows]
                cache.reorder_cache(rows)
            width += 1
            logits, cache = self._forward(tokens[:, None], mask[:, :width], positions, cache)
            positions = positions + 1

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Logits of the last column, ``(n, V)``, and the cache that now holds ``ids`` ``(n, t)`` too."""
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": True}
        if cache is not None:
            arguments["past_key_values"] = cache
        # Some older architectures derive positions from the mask, or cannot leave out logits.
        optional = {"position_ids": positions, "logits_to_keep": 1}
        arguments |= {name: value for name, value in optional.items() if name in self._accepted}
        output = self.model(**arguments)
        return output.logits[:, -1], output.past_key_values

    def _append(self, samples: list[_Sample], tokens: list[int], logps: list[float], stop: tuple[str, ...]) -> None:
        """Add one token to every sample that is not done, and decide which end with it."""
        for sample, token, logp in zip(samples, tokens, logps, strict=True):
            if not sample.alive:
                continue
            if not math.isfinite(logp):
                raise RunFailed(
                    f"The model gives token {len(sample.ids)} of an answer to prompt {sample.prompt} the "
                    f"log-probability {logp}: its weights are broken. Lower --learning-rate and go on from an earlier "
                    "checkpoint."
                )
            sample.ids.append(token)
            sample.logps.append(logp)
            sample.finished = token in self.stop_ids or (bool(stop) and self._stopped(sample.ids, stop))

    def _stopped(self, ids: list[int], stop: tuple[str, ...]) -> bool:
        """Whether a stop string ends in the newest token."""
        # A token is at least one byte, and up to 4 of them may make one character at the cut.
        tail = ids[-(max(len(text.encode()) for text in stop) + 4) :]
        decoded = self.tokenizer.decode(tail, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return any(text in decoded for text in stop)

    def _completion(self, sample: _Sample) -> Completion:
        text = self.tokenizer.decode(sample.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Completion(
            ids=torch.tensor(sample.ids, dtype=torch.long),  # (t,)
            logps=torch.tensor(sample.logps, dtype=torch.float32),  # (t,)
            finished=sample.finished,
            text=text,
        )

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def _inner(model: Any) -> Any:
    """The transformers model inside an adapter, whose ``forward`` names its arguments."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode, and each back in its own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _waves(prompts: list[Tensor], samples: list[list[_Sample]], size: int) -> Iterable[list[_Sample]]:
    """Cut all samples into waves of at most ``size``, prompts of like length together, groups whole where they fit."""
    wave: list[_Sample] = []
    for index in sorted(range(len(prompts)), key=lambda index: prompts[index].numel()):
        for start in range(0, len(samples[index]), size):
            group = samples[index][start : start + size]
            if len(wave) + len(group) > size:
                yield wave
                wave = []
            wave = wave + group
    if wave:
        yield wave
