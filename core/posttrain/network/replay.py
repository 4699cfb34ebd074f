"""Replay of the experts that a sampler chose, in the trainer's pass (rollout routing replay, R3, arXiv:2510.11370).

The router computes its logits from the trainer's hidden states and its own weights, and takes the sampler's experts
instead of the k largest. Their weights follow from the trainer's logits by the family's own rule, so gradients reach
the router as ever; the choice itself has none, as before. For a router with a softmax over the chosen experts this is
the paper's equation: exp(s_i) / sum of exp(s_j) over the experts j that the sampler chose.

Inside a router's forward pass ``topk`` over all experts returns the given ones. No family is listed: ``can_replay``
tries a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from posttrain.network.routing import Routers


@dataclass
class Replay:
    """Experts of the N tokens of one pass."""

    experts: Tensor
    """``(N, layers, choices)`` int64; -1 for tokens whose experts the router chooses."""
    own: dict[int, Tensor] = field(default_factory=dict)
    """The choice ``(N, choices)`` that each layer's router would have made."""

    @property
    def known(self) -> Tensor:
        """Mask ``(N,)`` of the tokens whose experts are given."""
        return self.experts[:, 0, 0] >= 0

    def replaced(self, layer: int) -> Tensor:
        """Return a mask ``(N,)`` of the tokens whose experts differ from the layer's own choice, in any order."""
        own, given = self.own[layer].cpu(), self.experts[:, layer].cpu()
        return (own.sort(-1).values != given.sort(-1).values).any(-1)


_current: ContextVar[Replay | None] = ContextVar("experts", default=None)
"""Experts of the current pass."""


def current() -> Replay | None:
    """Return the experts of the current pass; None where routers choose."""
    return _current.get()


@contextmanager
def replaying(replay: Replay | None) -> Iterator[None]:
    """Make the routers of ``prepare`` take the given experts inside the block; with None they choose."""
    before = _current.set(replay)
    try:
        yield
    finally:
        _current.reset(before)


def recomputed() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return the contexts of a checkpointed layer's forward pass and of its recomputation: the same experts in both."""
    replay = _current.get()
    return nullcontext(), nullcontext() if replay is None else replaying(replay)


def arranged(experts: list[Tensor | None], places: list[Tensor], count: int, part: slice = slice(None)) -> Replay:
    """Arrange the experts of sequences for a pass over ``count`` tokens, of which this process computes ``part``.

    ``places`` are the indices of each sequence's tokens in the pass. Tokens of none, such as padding, get -1.
    """
    shape = next(one.shape[1:] for one in experts if one is not None)
    whole = torch.full((count, *shape), -1, dtype=torch.int64)
    for own, place in zip(experts, places, strict=True):
        if own is not None:
            whole[place] = own.long()
    return Replay(whole[part])


def prepare(routers: Routers) -> None:
    """Let the routers take given experts. Where none are given, they compute what they computed before."""
    for layer, (module, _) in enumerate(routers.modules):
        module.forward = MethodType(_Router(layer, routers.experts, routers.choices), module)


@dataclass(frozen=True)
class _Router:
    """Forward pass of the router of ``layer``."""

    layer: int
    experts: int
    choices: int

    def __call__(self, module: Any, *inputs: Any, **named: Any) -> Any:
        plain, replay = type(module).forward, _current.get()
        if replay is None:
            return plain(module, *inputs, **named)
        with _Given(self, replay):
            return plain(module, *inputs, **named)


class _Given(TorchFunctionMode):
    """Replaces the choice of the largest scores ``(N, experts)`` of a layer by the given experts."""

    def __init__(self, router: _Router, replay: Replay):
        super().__init__()
        self.router, self.replay = router, replay

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if func not in (torch.topk, Tensor.topk):
            return found
        scores = args[0] if args else kwargs["input"]
        rows, router = len(self.replay.experts), self.router
        if scores.shape != (rows, router.experts) or found.indices.shape != (rows, router.choices):
            return found  # another choice of the router, such as that of groups of experts
        self.replay.own[router.layer] = found.indices
        given = self.replay.experts[:, router.layer].to(scores.device)
        chosen = torch.where(given >= 0, given, found.indices)
        return torch.return_types.topk((scores.gather(1, chosen), chosen))  # type: ignore[attr-defined]
