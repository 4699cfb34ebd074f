"""Everything one run holds. Built by ``posttrain.api``, driven by ``posttrain.training.loop``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.catalogue.cards import Card
from posttrain.catalogue.methods import Method
from posttrain.contract.views import Example, Sequence
from posttrain.distillation.teacher_inputs import attach_teacher_logits
from posttrain.models.reference import MovingReference, Reference
from posttrain.network.chunked_head import TokenQuery, chunk_tokens
from posttrain.network.kernels.offload import offloaded
from posttrain.network.precision import casts_to_bfloat16
from posttrain.network.token_model import TokenModel
from posttrain.runs.directory import RunDirectory
from posttrain.runs.observers import Observers
from posttrain.settings import Settings
from posttrain.training.correction import Correction
from posttrain.training.interrupt import Interrupt
from posttrain.training.micro_batches import micro_batches, token_budget
from posttrain.training.router_loss import RouterLoss
from posttrain.training.source import Source
from posttrain.training.strategy import Strategy


@dataclass
class Run:
    """A training run: what was asked for, what it works with, and where it stands."""

    settings: Settings
    method: Method
    config: Any
    policy: TokenModel
    tokenizer: Any
    stop_ids: set[int]
    reference: Reference | MovingReference | None
    teacher: Any
    """The model that the policy learns from (see posttrain.distillation.teacher), None where the method needs none."""
    strategy: Strategy
    directory: RunDirectory
    observers: Observers
    source: Source = None  # type: ignore[assignment]  # set right after: an online source needs the run itself
    evaluation: Any = None
    model_in_memory: bool = False
    """Whether a program handed its model over, so that no other process can load it by name."""
    correction: Correction | None = None
    """How what the sampler's policy differs from the trainer's is made up for; None where it is not."""
    router_loss: RouterLoss | None = None
    """Load-balancing loss of a mixture of experts that is added to the method's; None for none."""
    say: Callable[[str], None] = print
    """Shows a person one line."""
    optimizer: torch.optim.Optimizer = None  # type: ignore[assignment]
    schedule: torch.optim.lr_scheduler.LambdaLR = None  # type: ignore[assignment]
    parameters: list[nn.Parameter] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    """How many numbers are trained, and all, before a strategy spreads them."""
    total: int = 0
    step: int = 0
    """Optimiser steps done."""
    state: dict[str, Any] = field(default_factory=dict)
    """The method's own, kept in every checkpoint."""
    best: dict[str, Any] = field(default_factory=dict)
    """Best value of the best-metric so far, its step, and evaluations since."""
    interrupt: Interrupt = field(default_factory=Interrupt)
    """Whether somebody asked the run to stop."""
    interrupted: bool = False
    """Whether the run ended, saved, before its last step because of that; ``posttrain.resume`` goes on."""
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
        return self.settings.sampling.temperature if self.card.online else 1.0

    @property
    def head_chunk(self) -> int:
        """Tokens whose logits exist at one time."""
        vocabulary = self.policy.inner.config.get_text_config().vocab_size
        return chunk_tokens(self.settings.memory.head_chunk_tokens, vocabulary, self.policy.device)

    def micro_batches(self, examples: list[Example]) -> Iterator[list[Example]]:
        """Cut into forward passes by the settings."""
        narrow = casts_to_bfloat16(self.settings.model, self.policy)
        tokens = token_budget(self.settings.memory.micro_batch_tokens, self.policy.device, self.card.online, narrow)
        return micro_batches(
            examples, tokens, self.settings.memory.micro_batch_size, self.policy.packed, self.policy.shared
        )

    def iter_micro_batches(self, examples: list[Example]) -> Iterator[tuple[list[Example], bool]]:
        """Micro-batches, each with whether it is the last; empty ones where other ranks make more passes together."""
        micros = list(self.micro_batches(examples))
        rounds = self.strategy.synchronised_passes(len(micros))
        for place in range(rounds):
            yield micros[place] if place < len(micros) else [], place == rounds - 1

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 arithmetic over float32 weights where asked for, or where the GPU has it."""
        wanted = casts_to_bfloat16(self.settings.model, self.policy) and not self.strategy.handles_autocast
        return torch.autocast(self.policy.device.type, dtype=torch.bfloat16) if wanted else nullcontext()

    def activation_offload(self) -> AbstractContextManager[Any]:
        """Where a forward pass leaves what its backward pass needs."""
        return offloaded() if self.settings.memory.offload_activations else nullcontext()

    def close(self) -> None:
        """End what belongs to the run alone: processes that sample for it, and modes of the model's modules."""
        if self.policy.modes is not None:
            self.policy.modes.restore()
        close = getattr(self.source, "close", None)
        if close is not None:
            close()

    def request(self, sequences: list[Sequence]) -> TokenQuery:
        """What the head computes for the policy: log-probs, extra modules, and the method's token statistics."""
        request = TokenQuery(self.head_chunk, self.temperature, extras=True)
        hook = "posttrain_token_statistics"
        if not self.method.has(hook):
            return request
        request.statistics = functools.partial(_statistics, self.method, self.config, self.state)
        if self.reference is not None and self.method.takes(hook, "reference_logits"):
            request.others["reference_logits"] = self.reference.logits(sequences, self.temperature)
        if self.teacher is not None and self.method.takes(hook, "teacher_logits"):
            attach_teacher_logits(request, self.teacher, sequences)
        return request


def _statistics(
    method: Method, config: Any, state: dict[str, Any], logits: Tensor, labels: Tensor, **others: Any
) -> dict[str, Tensor]:
    return method.token_statistics(logits=logits, labels=labels, config=config, state=state, **others)
