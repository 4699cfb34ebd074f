"""Linear layers over float32 weights with bfloat16 products on a CPU: in both passes under autocast, or only backward.

CPUs with bfloat16 units compute such products in half the time or less, and two thirds of a training step's products
are those of the backward pass. Behind a forward pass in float32, log-probabilities, losses, ratios and margins are
those of float32 to the last bit; only gradients are rounded, by 2**-9 of each factor, far below the effect of the
choice of rows. Activations for the backward pass are kept in bfloat16, and gradients are accumulated over passes in
float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from posttrain.network.kernels.cpu.gradient_buffers import open_gradient

#: Largest difference of a gradient from the plain module's, relative to its largest entry.
TOLERANCE = 2**-5

NARROW = torch.bfloat16


def linear_layer(self: Any, input: Tensor) -> Tensor:  # the name that nn.Linear gives it
    """Compute the forward pass of ``nn.Linear``."""
    if not _worth_it(input):
        return linear(input, self.weight, self.bias)
    return _Linear.apply(input, self.weight, self.bias)


def gated_layers(self: Any, x: Tensor) -> Tensor:
    """Compute the forward pass of a gated MLP, ``down(silu(gate(x)) * up(x))``, without biases."""
    if not _worth_it(x):
        return type(self).forward(self, x)
    return _Gated.apply(x, self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)


def is_narrow(layer: nn.Linear) -> bool:
    """Return whether ``layer`` has ``linear_layer``, which without gradient is the plain forward pass."""
    return getattr(layer.__dict__.get("forward"), "__func__", None) is linear_layer


def _worth_it(states: Tensor) -> bool:
    """Return whether a backward pass follows, after a forward pass in a dtype that these layers support."""
    if not torch.is_grad_enabled():
        return False
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == NARROW
    return states.dtype == torch.float32


def _forward_type() -> torch.dtype:
    return NARROW if torch.is_autocast_enabled("cpu") else torch.float32


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight, ctx.type = weight, states.dtype  # the weight itself: its gradient is an attribute of it
        kind = _forward_type()
        ctx.save_for_backward(_narrowed(states) if ctx.needs_input_grad[1] else None)
        states = _narrowed(states) if kind == NARROW else states
        return linear(states, weight.to(kind), None if bias is None else bias.to(kind))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (states,) = ctx.saved_tensors
        to_states = to_weight = to_bias = None
        if ctx.needs_input_grad[2]:
            to_bias = gradient.flatten(0, -2).float().sum(0)
        gradient = gradient.to(NARROW)  # (..., O)
        if ctx.needs_input_grad[0]:
            to_states = (gradient @ ctx.weight.to(NARROW)).to(ctx.type)  # (..., I)
        if ctx.needs_input_grad[1]:
            to_weight = _to_weight(ctx.weight, gradient, states)
        return to_states, to_weight, to_bias


class _Gated(torch.autograd.Function):
    """A whole gated MLP, without casts between its layers."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, gate_weight: Tensor, up_weight: Tensor, down_weight: Tensor) -> Tensor:
        ctx.weights, ctx.type = (gate_weight, up_weight, down_weight), states.dtype
        kind, narrow = _forward_type(), _narrowed(states)
        states = narrow if kind == NARROW else states
        gate, up = linear(states, gate_weight.to(kind)), linear(states, up_weight.to(kind))  # (..., I)
        ctx.save_for_backward(narrow, gate.to(NARROW), up.to(NARROW))
        return linear(silu(gate).mul_(up), down_weight.to(kind))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        states, gate, up = ctx.saved_tensors
        narrow = [weight.to(NARROW) for weight in ctx.weights]
        gradient = gradient.to(NARROW)  # (..., H)
        activated = silu(gate)  # (..., I)
        product = gradient @ narrow[2]  # (..., I), of the gated product
        to_gate = torch.ops.aten.silu_backward(product * up, gate)
        to_up = product.mul_(activated)
        to_weights = [
            _to_weight(weight, output, input) if needed else None
            for weight, output, input, needed in zip(
                ctx.weights,
                (to_gate, to_up, gradient),
                (states, states, activated * up),
                ctx.needs_input_grad[1:],
                strict=True,
            )
        ]
        to_states = None
        if ctx.needs_input_grad[0]:
            to_states = (to_gate @ narrow[0]).float().add_(to_up @ narrow[1]).to(ctx.type)
        return to_states, *to_weights


def _to_weight(weight: Any, gradient: Tensor, states: Tensor) -> Tensor | None:
    """Compute the gradient ``(O, I)`` of ``weight``; None where it was accumulated in place."""
    found = gradient.flatten(0, -2).T @ states.flatten(0, -2)
    target = open_gradient(weight)
    if target is None:
        return found.float()
    target.add_(found)
    return None


def _narrowed(states: Tensor) -> Tensor:
    """Return a bfloat16 copy, shared by layers with the same input: query, key and value; gate and up."""
    version, copy = getattr(states, "_posttrain_narrow", (-1, states))
    if version != states._version:
        copy = states.detach().to(NARROW)
        states._posttrain_narrow = states._version, copy  # type: ignore[attr-defined]
    return copy
