"""State of one run. Built by ``posttrain.api``, driven by ``posttrain.training.loop``."""

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
from posttrain.models.average import WeightAverage
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


@dataclass(frozen=True)
class Plan:
    """The request: settings, method, and the method's own options."""

    settings: Settings
    method: Method
    config: Any

    @property
    def card(self) -> Card:
        """The method's card."""
        return self.method.card


@dataclass
class Compute:
    """Models, strategy and optimiser of a run, and how a batch is split and computed."""

    plan: Plan
    policy: TokenModel
    tokenizer: Any
    stop_ids: set[int]
    reference: Reference | MovingReference | None
    teacher: Any
    """Model that the policy learns from (see posttrain.distillation.teacher); None if the method needs none."""
    strategy: Strategy
    parameters: list[nn.Parameter]
    sizes: dict[str, int]
    """Number of trained parameters and of all, before a strategy shards them."""
    model_in_memory: bool = False
    """Whether a program passed its model as an object, so that no other process can load it by name."""
    correction: Correction | None = None
    """Importance-sampling correction for the gap between sampler and trainer; None when off."""
    router_loss: RouterLoss | None = None
    """Load-balancing loss of a mixture of experts, added to the method's; None when off."""
    average: WeightAverage | None = None
    """Moving average of the weights, saved at the end; None when off."""
    state: dict[str, Any] = field(default_factory=dict)
    """The method's own state, saved in every checkpoint."""
    optimizer: torch.optim.Optimizer = field(init=False)
    """Built by the strategy once a generator has its copy of the weights."""
    schedule: torch.optim.lr_scheduler.LambdaLR = field(init=False)

    @property
    def settings(self) -> Settings:
        """The plan's settings."""
        return self.plan.settings

    @property
    def method(self) -> Method:
        """The plan's method."""
        return self.plan.method

    @property
    def config(self) -> Any:
        """The method's options."""
        return self.plan.config

    @property
    def card(self) -> Card:
        """The method's card."""
        return self.plan.card

    @property
    def temperature(self) -> float:
        """Temperature of log-probs: the sampler's for online methods (G4), else 1."""
        return (self.settings.sampling.temperature or 1.0) if self.card.online else 1.0

    @property
    def head_chunk(self) -> int:
        """Tokens whose logits exist at one time."""
        vocabulary = self.policy.inner.config.get_text_config().vocab_size
        return chunk_tokens(self.settings.memory.head_chunk_tokens, vocabulary, self.policy.device)

    def micro_batches(self, examples: list[Example]) -> Iterator[list[Example]]:
        """Split examples into forward passes by the settings."""
        narrow = casts_to_bfloat16(self.settings.model, self.policy)
        tokens = token_budget(self.settings.memory.micro_batch_tokens, self.policy.device, self.card.online, narrow)
        return micro_batches(
            examples, tokens, self.settings.memory.micro_batch_size, self.policy.packed, self.policy.shared
        )

    def iter_micro_batches(self, examples: list[Example]) -> Iterator[tuple[list[Example], bool]]:
        """Yield micro-batches, each with whether it is the last; empty ones where other ranks run more passes."""
        micros = list(self.micro_batches(examples))
        rounds = self.strategy.synchronised_passes(len(micros))
        for place in range(rounds):
            yield micros[place] if place < len(micros) else [], place == rounds - 1

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context of bfloat16 arithmetic over float32 weights, where asked for or where the GPU has it."""
        wanted = casts_to_bfloat16(self.settings.model, self.policy) and not self.strategy.handles_autocast
        return torch.autocast(self.policy.device.type, dtype=torch.bfloat16) if wanted else nullcontext()

    def activation_offload(self) -> AbstractContextManager[Any]:
        """Return a context that offloads activations, where the settings ask for it."""
        return offloaded() if self.settings.memory.offload_activations else nullcontext()

    def request(self, sequences: list[Sequence]) -> TokenQuery:
        """Build the policy's query to the head: log-probs, extra modules, and the method's token statistics."""
        request = TokenQuery(self.head_chunk, self.temperature, extras=True, replay=True)
        hook = "posttrain_token_statistics"
        if not self.method.has(hook):
            return request
        request.statistics = functools.partial(_statistics, self.method, self.config, self.state)
        if self.reference is not None and self.method.takes(hook, "reference_logits"):
            request.others["reference_logits"] = self.reference.logits(sequences, self.temperature)
        if self.teacher is not None and self.method.takes(hook, "teacher_logits"):
            attach_teacher_logits(request, self.teacher, sequences)
        return request


@dataclass
class Progress:
    """Progress of a run, as in a checkpoint and the run directory."""

    total: int = 0
    """Optimiser steps of the whole run."""
    step: int = 0
    """Finished optimiser steps."""
    best: dict[str, Any] = field(default_factory=dict)
    """Best value of the best-metric so far, its step, and evaluations since."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Lines of metrics.jsonl."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    interrupted: bool = False
    """Whether the run was stopped early and saved; ``posttrain.resume`` continues it."""


@dataclass
class Outputs:
    """Output of a run: its directory, observers and log lines."""

    directory: RunDirectory
    observers: Observers
    say: Callable[[str], None] = print
    """Prints one line for the user."""


@dataclass(repr=False)
class Run:
    """A training run: its plan, compute, progress and outputs."""

    plan: Plan
    compute: Compute
    progress: Progress
    outputs: Outputs
    source: Source = field(init=False)
    """Source of each step's examples; an online source needs the run itself."""
    evaluation: Any = None
    interrupt: Interrupt = field(default_factory=Interrupt)
    """Whether the run was asked to stop."""

    def __repr__(self) -> str:
        """Return one line, without the weights."""
        where = f"step {self.progress.step} of {self.progress.total}"
        return f"<Run {self.card.name} at '{self.path}', {where}{', interrupted' if self.interrupted else ''}>"

    @property
    def settings(self) -> Settings:
        """All options except the method's own."""
        return self.plan.settings

    @property
    def method(self) -> Method:
        """The method, with its modifiers."""
        return self.plan.method

    @property
    def config(self) -> Any:
        """The method's own options."""
        return self.plan.config

    @property
    def card(self) -> Card:
        """The method's card."""
        return self.plan.card

    @property
    def policy(self) -> TokenModel:
        """The trained model, as log-probs of sequences."""
        return self.compute.policy

    @property
    def model(self) -> nn.Module:
        """The trained transformers or peft model."""
        return self.compute.policy.model

    @property
    def tokenizer(self) -> Any:
        """The policy's tokenizer."""
        return self.compute.tokenizer

    @property
    def state(self) -> dict[str, Any]:
        """The method's own state."""
        return self.compute.state

    @property
    def step(self) -> int:
        """Finished optimiser steps."""
        return self.progress.step

    @property
    def total(self) -> int:
        """Optimiser steps of the whole run."""
        return self.progress.total

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl."""
        return self.progress.history

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """Evaluations so far."""
        return self.progress.evaluations

    @property
    def interrupted(self) -> bool:
        """Whether the run was stopped before its last step."""
        return self.progress.interrupted

    @property
    def directory(self) -> RunDirectory:
        """The run directory and its files."""
        return self.outputs.directory

    @property
    def path(self) -> Path:
        """Folder of the run."""
        return self.outputs.directory.path

    def close(self) -> None:
        """Release what belongs to the run: sampling processes, and modes of the model's modules."""
        if self.compute.policy.modes is not None:
            self.compute.policy.modes.restore()
        close = getattr(self.source, "close", None)
        if close is not None:
            close()


def _statistics(
    method: Method, config: Any, state: dict[str, Any], logits: Tensor, labels: Tensor, **others: Any
) -> dict[str, Tensor]:
    return method.token_statistics(logits=logits, labels=labels, config=config, state=state, **others)
