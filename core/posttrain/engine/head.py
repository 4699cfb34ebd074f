"""The vocabulary projection, a few hundred tokens at a time, forward and backward: full logits never exist.

Only the hidden states that predict a trained token come here. The forward pass keeps nothing but them; the backward
pass computes each chunk's logits again, turns them into their own gradient in place, and adds it up.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Statistics = Callable[[Tensor, Tensor, Tensor | None], dict[str, Tensor]]


@dataclass
class Head:
    """A model's output projection and what the model does to the logits after it."""

    projection: nn.Module
    scale: float = 1.0
    """Factor on the logits (Cohere's logit_scale, the inverse of Granite's logits_scaling)."""
    softcap: float | None = None
    """Gemma's bound: softcap * tanh(logits / softcap)."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``(n, V)`` in float32 (float64 for a float64 model) of hidden states ``(n, H)``."""
        logits = self.projection(hidden)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained."""
        return [p for p in self.projection.parameters() if p.requires_grad]

    @property
    def plain(self) -> bool:
        """Whether the projection is one linear layer and nothing follows it: its gradient can be added up in place."""
        return type(self.projection) is nn.Linear and self.projection.bias is None and self.softcap is None


@dataclass
class Request:
    """What is wanted of each token besides its log-probability."""

    chunk: int = 256
    temperature: float = 1.0
    statistics: Statistics | None = None
    reference: Callable[[slice], Tensor] | None = None
    """Logits ``(c, V)`` of the reference model for a chunk of the same tokens, without gradient."""


def token_statistics(hidden: Tensor, labels: Tensor, head: Head, request: Request) -> dict[str, Tensor]:
    """Per-token ``logps`` ``(n,)`` and the named statistics of ``labels`` ``(n,)`` given ``hidden`` ``(n, H)``."""
    names: list[str] = []
    outputs = _ChunkedHead.apply(hidden, labels, head, request, names, *head.parameters())
    return dict(zip(names, outputs, strict=True))


def _evaluate(hidden: Tensor, labels: Tensor, at: slice, head: Head, request: Request) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of one chunk after temperature, and everything wanted of it."""
    logits = head.logits(hidden)  # (c, V)
    if request.temperature != 1.0:
        logits = logits / request.temperature
    wanted = {"logps": logits.gather(1, labels[:, None])[:, 0] - torch.logsumexp(logits, dim=1)}
    if request.statistics is not None:
        reference_logits = None
        if request.reference is not None:
            reference_logits = request.reference(at) / request.temperature
        wanted.update(request.statistics(logits, labels, reference_logits))
    return logits, wanted


class _ChunkedHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, labels: Tensor, head: Head, request: Request, names: list[str], *parameters):
        ctx.head, ctx.request, ctx.names = head, request, names
        ctx.save_for_backward(hidden, labels)
        ctx.autocast = _autocast_state(hidden.device.type)
        pieces: dict[str, list[Tensor]] = {}
        for at in _chunks(len(labels), request.chunk):
            _, wanted = _evaluate(hidden[at], labels[at], at, head, request)
            for name, value in wanted.items():
                pieces.setdefault(name, []).append(value)
        names.extend(pieces or ["logps"])
        outputs = [torch.cat(values) for values in pieces.values()] or [hidden.new_zeros(0, dtype=torch.float32)]
        ctx.learnt = _differentiable(hidden, labels, head, request, names)
        ctx.mark_non_differentiable(*(o for n, o in zip(names, outputs, strict=True) if n not in ctx.learnt))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None):
        hidden, labels = ctx.saved_tensors
        head, request = ctx.head, ctx.request
        wanted = {n: g for n, g in zip(ctx.names, gradients, strict=True) if n in ctx.learnt and g is not None}
        parameters = head.parameters()
        into = _Accumulators(hidden, parameters, ctx.needs_input_grad[0])
        for at in _chunks(len(labels), request.chunk):
            with torch.enable_grad(), ctx.autocast():
                chunk = hidden[at].detach().requires_grad_(into.hidden is not None)
                if set(wanted) <= {"logps"} and head.plain:
                    _plain_backward(chunk, labels[at], at, head, request, wanted.get("logps"), into)
                    continue
                _, values = _evaluate(chunk, labels[at], at, head, request)
                outputs = [values[name] for name in wanted]
                inputs = ([chunk] if into.hidden is not None else []) + parameters
                found = torch.autograd.grad(outputs, inputs, [wanted[n][at] for n in wanted], allow_unused=True)
            into.add(at, list(found))
        return into.hidden, None, None, None, None, *into.parameter_gradients()


class _Accumulators:
    """Where the chunks' gradients are summed: the hidden states' by place, the parameters' in float32 or better."""

    def __init__(self, hidden: Tensor, parameters: list[nn.Parameter], wants_hidden: bool):
        self.hidden = torch.zeros_like(hidden) if wants_hidden else None
        self.parameters = parameters
        self.sums = [torch.zeros_like(p, dtype=_wide(p.dtype)) for p in parameters]

    def add(self, at: slice, found: list[Tensor | None]) -> None:
        if self.hidden is not None:
            first = found.pop(0)
            if first is not None:
                self.hidden[at] = first
        for total, gradient in zip(self.sums, found, strict=True):
            if gradient is not None:
                total += gradient

    def parameter_gradients(self) -> list[Tensor]:
        return [total.to(p.dtype) for p, total in zip(self.parameters, self.sums, strict=True)]


def _plain_backward(
    hidden: Tensor, labels: Tensor, at: slice, head: Head, request: Request, gradient: Tensor | None, into: _Accumulators
) -> None:
    """d logp = gradient * (one-hot - softmax), written over the logits themselves."""
    if gradient is None:
        return
    with torch.no_grad():
        weight = head.projection.weight  # (V, H)
        factor = head.scale / request.temperature
        logits = head.logits(hidden) / request.temperature if request.temperature != 1.0 else head.logits(hidden)
        logits.sub_(torch.logsumexp(logits, dim=1, keepdim=True)).exp_().mul_(-gradient[at, None] * factor)
        logits[torch.arange(len(labels), device=labels.device), labels] += gradient[at] * factor
        if into.hidden is not None:
            into.hidden[at] = logits.to(weight.dtype) @ weight
        for total in into.sums:  # the weight, when it is trained
            total.addmm_(logits.to(total.dtype).T, hidden.to(total.dtype))


def _chunks(length: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, length, size)]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def _differentiable(hidden: Tensor, labels: Tensor, head: Head, request: Request, names: list[str]) -> set[str]:
    """Names whose values carry a gradient, found on one token: a method may detach what is only for the log."""
    if request.statistics is None or not len(labels):
        return {"logps"}
    with torch.enable_grad():
        one = slice(0, 1)
        _, wanted = _evaluate(hidden[one].detach().requires_grad_(), labels[one], one, head, request)
    return {name for name in names if wanted[name].requires_grad}


def _autocast_state(device: str) -> Callable[[], AbstractContextManager]:
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype=dtype, enabled=enabled)
