"""RMSNorm, gated MLP and embedding that recompute intermediates in the backward pass, in less memory.

The plain modules of a decoder layer keep each intermediate result: of a root-mean-square norm the normalised states, of
a gated layer the activated gate and its product with the other half. Those are a third of everything a training step
holds in memory, and a few elementwise operations recompute them. The forward pass has the operations of the plain
module, so its numbers are bit-identical; each kind of module is tested on random numbers before it is replaced, and
stays as it is if it computes something else. An embedding's gradient is as large as the vocabulary and nearly empty:
where allowed it is added to the weight's own, row by row.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, silu

from posttrain.network.kernels.cpu import bf16_backward
from posttrain.network.kernels.cpu.gradient_buffers import open_gradient

#: Largest difference of a gradient from the plain module's, relative to its largest entry.
TOLERANCE = 1e-4


def use_recomputing_ops(model: nn.Module, narrowed: bool = False) -> int:
    """Replace the forward pass of supported modules in ``model``; return how many.

    With ``narrowed`` also linear layers, see ``bf16_backward``, except the vocabulary projection, which the core
    multiplies. Only modules on a CPU are replaced: GPUs have kernels for the same.
    """
    fits: dict[tuple[Any, ...], bool] = {}
    found = 0
    head = getattr(model, "get_output_embeddings", lambda: None)()
    for module in model.modules():
        lean = _candidate(module, narrowed)
        if lean is None or module is head:
            continue
        key = (type(module), lean, tuple(p.shape for p in module.parameters()))
        if key not in fits:
            fits[key] = _agrees(module, lean)
        if fits[key]:
            module.forward = MethodType(lean, module)
            found += 1
    return found


def _candidate(module: Any, narrowed: bool) -> Any:
    """Return the forward pass that can replace that of ``module``; None for an unknown kind."""
    weights = list(module.parameters())
    if "forward" in module.__dict__ or not weights or any(w.device.type != "cpu" for w in weights):
        return None  # accelerate wraps modules by that attribute
    if any(w.dtype != torch.float32 for w in weights):
        return None
    if type(module) is nn.Embedding:
        plain = module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
        return _embed if plain else None
    if type(module) is nn.Linear:
        return bf16_backward.linear_layer if narrowed else None
    if type(module).__name__.endswith("RMSNorm") and set(dict(module.named_parameters())) == {"weight"}:
        return _norm if hasattr(module, "variance_epsilon") else None
    if {"gate_proj", "up_proj", "down_proj", "act_fn"} <= set(module._modules):
        if not _plain_layer(module.down_proj) or type(module.act_fn).__name__ not in ("SiLU", "SiLUActivation"):
            return None
        whole = narrowed and _plain_layer(module.gate_proj) and _plain_layer(module.up_proj)
        return bf16_backward.gated_layers if whole else _gated
    return None


def _plain_layer(module: nn.Module) -> bool:
    return type(module) is nn.Linear and module.bias is None


def _plain(module: nn.Module, states: Tensor) -> Tensor:
    return type(module).forward(module, states)


def _norm(self: Any, hidden_states: Tensor) -> Tensor:
    if not _worth_it(hidden_states):
        return _plain(self, hidden_states)
    return _Norm.apply(hidden_states, self.weight, self.variance_epsilon)


def _gated(self: Any, x: Tensor) -> Tensor:
    if not _worth_it(x) or torch.is_autocast_enabled("cpu"):
        return _plain(self, x)
    return _GatedLinear.apply(self.gate_proj(x), self.up_proj(x), self.down_proj.weight)


def _embed(self: Any, input: Tensor) -> Tensor:  # the name that nn.Embedding gives it
    if not torch.is_grad_enabled() or not self.weight.requires_grad:
        return _plain(self, input)
    return _Embedding.apply(input, self.weight, self.padding_idx)


def _worth_it(states: Tensor) -> bool:
    return torch.is_grad_enabled() and states.dtype == torch.float32


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        scale = torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + epsilon)  # (..., 1)
        ctx.save_for_backward(states, weight, scale)
        return weight * (states * scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        states, weight, scale = ctx.saved_tensors
        normal = states * scale  # (..., H)
        to_weight = (gradient * normal).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, to_weight, None
        scaled = gradient * weight
        along = (scaled * normal).mean(-1, keepdim=True)  # (..., 1)
        return scaled.sub_(normal.mul_(along)).mul_(scale), to_weight, None


class _GatedLinear(torch.autograd.Function):
    """``linear(silu(gate) * up, weight)`` that keeps only ``gate`` and ``up``."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        return linear(silu(gate).mul_(up), weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        gate, up, weight = ctx.saved_tensors
        activated = silu(gate)  # (..., I)
        to_weight = None
        if ctx.needs_input_grad[2]:
            to_weight = gradient.flatten(0, -2).T @ (activated * up).flatten(0, -2)
        product = gradient @ weight  # (..., I), of the product
        to_gate = torch.ops.aten.silu_backward(product * up, gate)
        return to_gate, product.mul_(activated), to_weight


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.weight, ctx.padding = weight, padding  # itself: its gradient is an attribute of it
        return embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor | None, None]:
        (ids,) = ctx.saved_tensors
        rows, flat = ids.flatten(), gradient.flatten(0, -2)  # (N,), (N, H)
        if ctx.padding is not None:
            flat = flat * (rows != ctx.padding)[:, None]
        target = open_gradient(ctx.weight)
        if target is not None:
            target.index_add_(0, rows, flat)
            return None, None, None
        return None, torch.zeros_like(ctx.weight).index_add_(0, rows, flat), None


def _agrees(module: Any, lean: Any) -> bool:
    """Return whether both forward passes give equal outputs and close gradients for random numbers."""
    if lean is _embed:
        return True  # torch's own class, all of whose options are checked
    width = next(module.parameters()).shape[-1]
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(1, 5, width, generator=generator)
    gradient = torch.randn(1, 5, module.out_features if type(module) is nn.Linear else width, generator=generator)
    found = []
    for way in (_plain, lean):
        own = states.clone().requires_grad_()
        inputs = [own, *(p for p in module.parameters() if p.requires_grad)]
        with torch.enable_grad():
            output = way(module, own)
            if output.shape != gradient.shape:
                return False
            found.append((output.detach(), torch.autograd.grad(output, inputs, gradient)))
    (plain, wanted), (ours, got) = found
    bound = TOLERANCE if lean in (_norm, _gated) else bf16_backward.TOLERANCE
    near = all(float((a - b).abs().max()) <= bound * float(a.abs().max()) for a, b in zip(wanted, got, strict=True))
    return torch.equal(plain, ours) and near
