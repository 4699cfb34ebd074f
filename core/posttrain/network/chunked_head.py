"""Vocabulary projection in chunks of a few hundred tokens, forward and backward: full logits never exist.

Only the hidden states that predict a trained token come here. The forward pass keeps them and the last chunk, whose
memory the following backward pass would allocate anyway; the backward pass recomputes the other chunks' logits, turns
all into their own gradient in place, and accumulates it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.network.kernels.cpu.gradient_buffers import open_gradient
from posttrain.network.kernels.cpu.matmul import is_bfloat16_on_cpu
from posttrain.network.kernels.cpu.thread_memory import give_back, reused, reused_copy, taken

#: Of logits ``(c, V)``, labels ``(c,)`` and the arguments of the same tokens in ``TokenQuery.others``.
Statistics = Callable[..., dict[str, Tensor]]


@dataclass
class Head:
    """A model's output projection and what the model does to the logits after it."""

    projection: Any
    scale: float = 1.0
    """Factor on the logits (Cohere's logit_scale, the inverse of Granite's logits_scaling)."""
    softcap: float | None = None
    """Gemma's bound: softcap * tanh(logits / softcap)."""

    def project(self, hidden: Tensor) -> Tensor:
        """Apply the projection alone."""
        return self.projection(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute logits ``(n, V)`` in float32 (float64 for a float64 model) of hidden states ``(n, H)``."""
        logits = self.project(hidden)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters."""
        return [p for p in self.projection.parameters() if p.requires_grad]

    @property
    def plain(self) -> bool:
        """Whether the projection is one linear layer with nothing after it: its gradient can be summed in place."""
        return type(self.projection) is nn.Linear and self.projection.bias is None and self.softcap is None


#: Bytes of a chunk's logits on a GPU: enough to keep it busy, little beside the activations.
GPU_CHUNK_BYTES = 2**28


def chunk_tokens(asked: int | None, vocabulary: int, device: torch.device) -> int:
    """Return the tokens of a chunk: as requested, else what suits the device."""
    if asked is not None:
        return asked
    return 256 if device.type == "cpu" else max(128, GPU_CHUNK_BYTES // (4 * vocabulary))


WIDE = (torch.float32, torch.float64)
#: Rows of a product that is rounded before it is added: they stay in the processor's cache between the two.
ROUNDED_ROWS = 4096


@dataclass
class TokenQuery:
    """Query to the head for results per token besides its log-probability."""

    chunk: int = 256
    temperature: float = 1.0
    statistics: Statistics | None = None
    others: dict[str, Callable[[slice], Any]] = field(default_factory=dict)
    """Further arguments of ``statistics`` by name, chunk by chunk: logits ``(c, V)`` of other models for the same
    tokens, at the same temperature and without gradient."""
    cuts: list[slice] | None = None
    """Chunk boundaries, where chunks may not be cut anywhere."""
    extras: bool = False
    """Compute the model's extra modules too."""
    routing: int = 0
    """Experts per token, where the routers' choices are needed; 0 if not."""
    only_routing: bool = False
    """Compute only the routers' choices."""
    load: bool = False
    """Compute which experts the tokens have."""
    replay: bool = False
    """Take the experts that the sequences carry, where they carry any."""


def token_statistics(hidden: Tensor, labels: Tensor, head: Head, request: TokenQuery) -> dict[str, Tensor]:
    """Compute per-token ``logps`` ``(n,)`` and the named statistics of ``labels`` ``(n,)`` from ``hidden`` ``(n,
    H)``."""
    names: list[str] = []
    outputs = _ChunkedHead.apply(hidden, labels, head, request, names, *head.parameters())
    return dict(zip(names, outputs, strict=True))


def _evaluate(hidden: Tensor, labels: Tensor, at: slice, head: Head, request: TokenQuery) -> dict[str, Tensor]:
    """Compute everything requested of one chunk; its logits after temperature are freed after the last use."""
    logits = head.logits(hidden)  # (c, V)
    if request.temperature != 1.0:
        logits = logits / request.temperature
    logps = _picked(logits, labels) - torch.logsumexp(logits, dim=1)
    return {"logps": logps, **_statistics(logits, labels, at, request)}


def _statistics(logits: Tensor, labels: Tensor, at: slice, request: TokenQuery) -> dict[str, Tensor]:
    """Compute everything requested of one chunk besides its log-probabilities."""
    if request.statistics is None:
        return {}
    return request.statistics(logits, labels, **{name: give(at) for name, give in request.others.items()})


def _picked(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the labels' own entries of ``logits`` ``(c, V)``."""
    return logits.gather(1, labels[:, None])[:, 0]


@dataclass
class _Products:
    """Factors and memory of a plain head's products, used for every chunk in turn.

    Allocated anew for each chunk, logits below the C library's threshold of 32 MB pile up instead of being reused;
    above it the system clears all their pages again, which takes longer than the arithmetic on them.
    """

    weight: Tensor
    """``(V, H)``; on a CPU under autocast rounded to bfloat16, in memory of the thread."""
    logits: Tensor
    """``(c, V)`` of the longest chunk, in the parameter's dtype."""

    @classmethod
    def of(cls, hidden: Tensor, head: Head, request: TokenQuery, logits: Tensor | None) -> _Products | None:
        """Round the weight where needed, and allocate ``logits`` if None; None where another dtype is computed."""
        weight: Any = head.projection.weight.detach()
        factor = weight
        if weight.dtype == torch.float32 and weight.device.type == "cpu" and is_bfloat16_on_cpu(weight):
            factor = reused_copy("head", weight, torch.bfloat16)
        elif torch.is_autocast_enabled(hidden.device.type) or hidden.dtype != weight.dtype or weight.dtype not in WIDE:
            return None
        if logits is None:
            shape = max((at.stop - at.start for at in _chunks(len(hidden), request)), default=0), len(weight)
            logits = (
                taken("wide logits", shape, weight.dtype) if weight.device.type == "cpu" else weight.new_empty(shape)
            )
        return cls(factor, logits)

    def project(self, hidden: Tensor) -> Tensor:
        """Compute the logits ``(c, V)`` of a chunk."""
        wide, kind = self.logits[: len(hidden)], self.weight.dtype
        if kind == wide.dtype:
            return torch.mm(hidden, self.weight.T, out=wide)
        narrow = reused("logits", tuple(wide.shape), kind)
        return wide.copy_(torch.mm(hidden.to(kind), self.weight.T, out=narrow))

    def factors(self, logits: Tensor) -> Tensor:
        """Return the gradient of a chunk's logits as the products take it."""
        kind = self.weight.dtype
        return logits if kind == logits.dtype else reused_copy("logits", logits, kind)


def _give_back(logits: Tensor | None) -> None:
    """Leave the memory of ``logits``, if it is the thread's, to the next pass."""
    if logits is not None and logits.device.type == "cpu":
        give_back("wide logits", logits)


def _plain_logits(hidden: Tensor, head: Head, request: TokenQuery, products: _Products | None) -> Tensor:
    """Compute logits ``(c, V)`` of a plain head after temperature, without gradient and free to be overwritten."""
    if products is None:
        logits = head.logits(hidden)
        return logits.div_(request.temperature) if request.temperature != 1.0 else logits
    logits = products.project(hidden)
    factor = head.scale / request.temperature
    return logits.mul_(factor) if factor != 1.0 else logits


@dataclass
class _LastChunk:
    """A chunk's logits as the forward pass leaves them."""

    exponentials: Tensor
    """``(c, V)`` of the logits less the row's maximum."""
    sums: Tensor
    """``(c,)`` sums of the exponentials."""


def _plain_evaluate(
    hidden: Tensor, labels: Tensor, at: slice, head: Head, request: TokenQuery, products: _Products | None
) -> tuple[dict[str, Tensor], _LastChunk]:
    """Compute ``_evaluate`` in the memory of one chunk of logits: the exponentials overwrite them."""
    logits = _plain_logits(hidden, head, request, products)
    memory = logits.untyped_storage().data_ptr()
    found = _statistics(logits, labels, at, request).items()
    wanted = {name: v.clone() if v.untyped_storage().data_ptr() == memory else v for name, v in found}
    picked, highest = _picked(logits, labels), logits.amax(1)  # (c,)
    kept = _LastChunk(logits, logits.sub_(highest[:, None]).exp_().sum(1))
    return {"logps": picked - highest - kept.sums.log(), **wanted}, kept


class _ChunkedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, labels: Tensor, head: Head, request: TokenQuery, names: list[str], *parameters
    ):
        ctx.head, ctx.request, ctx.names = head, request, names
        ctx.autocast = _autocast_state(hidden.device.type)
        pieces: dict[str, list[Tensor]] = {}
        kept = None
        products = _Products.of(hidden, head, request, None) if head.plain else None
        for at in _chunks(len(labels), request):
            if head.plain:
                wanted, kept = _plain_evaluate(hidden[at], labels[at], at, head, request, products)
            else:
                wanted = _evaluate(hidden[at], labels[at], at, head, request)
            for name, value in wanted.items():
                pieces.setdefault(name, []).append(value)
        names.extend(pieces or ["logps"])
        outputs = [torch.cat(values) for values in pieces.values()] or [hidden.new_zeros(0, dtype=torch.float32)]
        ctx.learnt = _differentiable(hidden, labels, head, request, names)
        room = None if products is None else products.logits
        ctx.room, ctx.kept = (room, kept) if any(ctx.needs_input_grad) else (None, None)
        if ctx.room is None:
            _give_back(room)
        ctx.save_for_backward(hidden, labels, outputs[names.index("logps")])
        ctx.mark_non_differentiable(*(o for n, o in zip(names, outputs, strict=True) if n not in ctx.learnt))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None):
        hidden, labels, logps = ctx.saved_tensors
        head, request = ctx.head, ctx.request
        wanted = {n: g for n, g in zip(ctx.names, gradients, strict=True) if n in ctx.learnt and g is not None}
        parameters = head.parameters()
        into = _Accumulators(hidden, parameters, ctx.needs_input_grad[0])
        room, kept, ctx.room, ctx.kept = ctx.room, ctx.kept, None, None  # overwritten below: good for one backward pass
        if set(wanted) <= {"logps"} and head.plain:
            if "logps" in wanted:
                with torch.no_grad(), ctx.autocast():
                    _plain_backward(hidden, labels, logps, wanted["logps"], head, request, into, room, kept)
            else:
                _give_back(room)
            return into.hidden, None, None, None, None, *into.parameter_gradients()
        _give_back(room)
        for at in _chunks(len(labels), request):
            with torch.enable_grad(), ctx.autocast():
                chunk = hidden[at].detach().requires_grad_(into.hidden is not None)
                values = _evaluate(chunk, labels[at], at, head, request)
                outputs = [values[name] for name in wanted]
                inputs = ([chunk] if into.hidden is not None else []) + parameters
                found = torch.autograd.grad(outputs, inputs, [wanted[n][at] for n in wanted], allow_unused=True)
            into.add(at, list(found))
        return into.hidden, None, None, None, None, *into.parameter_gradients()


class _Accumulators:
    """Sums of the chunks' gradients: the hidden states' by index, the parameters' in float32 or better."""

    def __init__(self, hidden: Tensor, parameters: list[nn.Parameter], wants_hidden: bool):
        self.hidden = torch.zeros_like(hidden) if wants_hidden else None
        self.parameters = parameters
        self.own = [open_gradient(p) if _wide(p.dtype) == p.dtype else None for p in parameters]
        self.sums = [
            torch.zeros_like(p, dtype=_wide(p.dtype)) if own is None else own
            for p, own in zip(parameters, self.own, strict=True)
        ]

    def add(self, at: slice, found: list[Tensor | None]) -> None:
        if self.hidden is not None:
            first = found.pop(0)
            if first is not None:
                self.hidden[at] = first
        for total, gradient in zip(self.sums, found, strict=True):
            if gradient is not None:
                total += gradient

    def parameter_gradients(self) -> list[Tensor | None]:
        """Return the gradients that autograd must add; None for those accumulated in place."""
        triples = zip(self.parameters, self.sums, self.own, strict=True)
        return [total.to(p.dtype) if own is None else None for p, total, own in triples]


def _plain_backward(
    hidden: Tensor,
    labels: Tensor,
    logps: Tensor,
    gradient: Tensor,
    head: Head,
    request: TokenQuery,
    into: _Accumulators,
    room: Tensor | None,
    kept: _LastChunk | None,
) -> None:
    """Write d logp = gradient * (one-hot - softmax) over the logits, normalised by the forward's ``logps``.

    The last chunk comes first: ``kept`` is in ``room``, which the others then reuse.
    """
    weight: Any = head.projection.weight  # (V, H)
    products = _Products.of(hidden, head, request, room)
    for at in reversed(_chunks(len(labels), request)):
        factor = gradient[at] * (head.scale / request.temperature)  # (c,)
        if kept is not None:
            logits = kept.exponentials.mul_((-factor / kept.sums)[:, None])
            kept = None
        else:
            logits = _plain_logits(hidden[at], head, request, products)
            normaliser = _picked(logits, labels[at]) - logps[at]  # (c,)
            logits.sub_(normaliser[:, None]).exp_().mul_(-factor[:, None])
        logits[torch.arange(len(factor), device=labels.device), labels[at]] += factor
        logits = logits.to(_product_type(weight)) if products is None else products.factors(logits)
        if into.hidden is not None:
            into.hidden[at] = logits @ (weight if products is None else products.weight)
        for total in into.sums:  # the weight, when it is trained
            _add_product(total, logits.T, hidden[at].to(logits.dtype))
    _give_back(None if products is None else products.logits)


def _product_type(weight: Tensor) -> torch.dtype:
    """Return the dtype of matrix products: the weight's, or autocast's on a GPU."""
    if weight.device.type == "cuda" and torch.is_autocast_enabled("cuda") and weight.dtype == torch.float32:
        return torch.get_autocast_dtype("cuda")
    return weight.dtype


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left @ right`` to ``total``, accumulated in the dtype of ``total`` whatever that of the factors.

    On a CPU under autocast the product is rounded before it is added, as those of all other layers are.
    """
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        for start in range(0, len(total), ROUNDED_ROWS):
            rows = slice(start, start + ROUNDED_ROWS)
            total[rows] += left[rows] @ right
    elif left.device.type == "cuda" and hasattr(torch.ops.aten.mm, "dtype"):  # torch 2.8
        total += torch.mm(left, right, out_dtype=total.dtype)
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))


def _chunks(length: int, request: TokenQuery) -> list[slice]:
    """Return the chunk boundaries; the last chunk is a full one, since it is kept."""
    if request.cuts is not None:
        return request.cuts
    ends = range(length % request.chunk or request.chunk, length + 1, request.chunk) if length else []
    return [slice(max(0, end - request.chunk), end) for end in ends]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in WIDE else torch.float32


def _differentiable(hidden: Tensor, labels: Tensor, head: Head, request: TokenQuery, names: list[str]) -> set[str]:
    """Return the names whose values have a gradient, found on one token: a method may detach what is only logged."""
    if request.statistics is None or not len(labels):
        return {"logps"}
    with torch.enable_grad():
        one = slice(0, 1) if request.cuts is None else request.cuts[0]
        wanted = _evaluate(hidden[one].detach().requires_grad_(), labels[one], one, head, request)
    return {name for name in names if wanted[name].requires_grad}


def _autocast_state(device: str) -> Callable[[], AbstractContextManager]:
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype=dtype, enabled=enabled)
