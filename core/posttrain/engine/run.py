"""Everything one run holds. Built by ``posttrain.api``, driven by ``posttrain.engine.loop``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.cards import Card
from posttrain.engine.batches import micro_batches
from posttrain.engine.forward import TokenModel
from posttrain.engine.head import Request
from posttrain.engine.source import Source
from posttrain.methods import Method
from posttrain.models.reference import Reference
from posttrain.settings import Settings
from posttrain.strategies.protocol import Strategy
from posttrain.views import Example
from posttrain.watch.observers import Observers
from posttrain.watch.run_directory import RunDirectory


@dataclass
class Run:
    """A training run: what was asked for, what it works with, and where it stands."""

    settings: Settings
    method: Method
    config: Any
    policy: TokenModel
    tokenizer: Any
    stop_ids: set[int]
    reference: Reference | None
    strategy: Strategy
    directory: RunDirectory
    observers: Observers
    source: Source = None  # type: ignore[assignment]  # set right after: an online source needs the run itself
    evaluation: Any = None
    optimizer: torch.optim.Optimizer = None  # type: ignore[assignment]
    schedule: torch.optim.lr_scheduler.LambdaLR = None  # type: ignore[assignment]
    parameters: list[nn.Parameter] = field(default_factory=list)
    total: int = 0
    step: int = 0
    """Optimiser steps done."""
    state: dict[str, Any] = field(default_factory=dict)
    """The method's own, kept in every checkpoint."""
    best: dict[str, Any] = field(default_factory=dict)
    """Best value of the best-metric so far, its step, and evaluations since."""
    history: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def card(self) -> Card:
        """The method's card."""
        return self.method.card

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return self.history

    @property
    def model(self) -> nn.Module:
        """The trained transformers or peft model."""
        return self.policy.model

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.directory.path

    @property
    def temperature(self) -> float:
        """At which log-probs are taken: the sampler's for online methods (G4), else 1."""
        return (self.settings.temperature or 1.0) if self.card.online else 1.0

    def micro_batches(self, examples: list[Example]) -> Iterator[list[Example]]:
        """Cut into forward passes by the settings."""
        tokens = self.settings.micro_batch_tokens
        if tokens is None:
            tokens = 1024 if self.policy.device.type == "cpu" else 16384
        return micro_batches(examples, tokens, self.settings.micro_batch_size, self.policy.packed, self.policy.shared)

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 arithmetic over float32 weights where asked for, or where the GPU has it."""
        wanted = self.settings.autocast
        if wanted is None:
            single = next(self.policy.parameters()).dtype == torch.float32
            wanted = self.policy.device.type == "cuda" and single and torch.cuda.is_bf16_supported()
        return torch.autocast(self.policy.device.type, dtype=torch.bfloat16) if wanted else nullcontext()

    def request(self) -> Request:
        """What the head computes for the policy: log-probs, and the method's token statistics."""
        request = Request(self.settings.head_chunk_tokens, self.temperature)
        if self.method.has("posttrain_token_statistics"):

            def statistics(logits: Tensor, labels: Tensor, reference_logits: Tensor | None) -> dict[str, Tensor]:
                return self.method.token_statistics(
                    logits=logits, labels=labels, reference_logits=reference_logits, config=self.config
                )

            request.statistics = statistics
        return request

    def reference_for_statistics(self) -> Reference | None:
        """The reference where the method compares whole distributions; its logits are computed only then."""
        if self.reference is None or not self.method.has("posttrain_token_statistics"):
            return None
        arguments = inspect.signature(self.method.module.posttrain_token_statistics).parameters
        return self.reference if "reference_logits" in arguments else None
