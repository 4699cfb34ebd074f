"""Decoder layers compiled by torch's own compiler, on request.

Each kind of layer is compiled once, in two parts: before attention and after it. Attention over packed rows stays as it
is, since it depends on the lengths of the rows. Generation runs the plain layers: its shapes change with every token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface

from posttrain.contract.views import Sequence
from posttrain.errors import ModelError, first_line
from posttrain.network import attention
from posttrain.network.images import language_part

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.network.token_model import TokenModel

#: Variants of a layer: with and without gradient, in training, under autocast, with its adapter off.
VARIANTS = 64
#: Largest difference of hidden states, relative to their largest entry: products are added in another order.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_plainly: ContextVar[bool] = ContextVar("plainly", default=False)


def compile_layers(policy: TokenModel) -> str:
    """Compile the decoder's layers and compare hidden states; return a log line of what was done.

    Raises ModelError for a family whose layers are not named or have routers, where the compiler fails (a CPU needs a
    C++ compiler), and where hidden states change.
    """
    kind = type(policy.inner).__name__
    names = set(policy.inner._no_split_modules or ())
    found = [m for m in language_part(policy.decoder).modules() if type(m).__name__ in names]
    layers = [m for m in found if "forward" not in vars(m)]  # accelerate replaces those that it moves
    if not layers or policy.routers is not None:
        why = "does not name its layers" if not layers else "has experts, which are chosen anew in every pass"
        raise ModelError(f"--compile compiles layer by layer, and {kind} {why}. Leave it out.")
    import torch._dynamo as dynamo

    before = _states(policy)
    limit = "recompile_limit" if hasattr(dynamo.config, "recompile_limit") else "cache_size_limit"  # up to torch 2.6
    setattr(dynamo.config, limit, max(getattr(dynamo.config, limit), VARIANTS))
    whole: Any = torch.compiler.disable(attention.document_attention)
    AttentionInterface.register(attention.NAME, whole)
    ways = {type(layer): _either(type(layer).forward) for layer in layers}
    for layer in layers:  # as methods: a copy of the model, such as a reference, then runs its own layers
        layer.forward = MethodType(ways[type(layer)], layer)
    try:
        after = _states(policy)
    except Exception as error:  # the compiler, its C++ compiler and the family's code each have their own
        raise ModelError(
            f"torch.compile failed on the layers of {kind}: {first_line(error)} Leave --compile out."
        ) from None
    worst = float((after - before).abs().max() / before.abs().max())
    bound = TOLERANCE.get(before.dtype, 5e-2)
    if not worst <= bound:
        raise ModelError(
            f"torch.compile changes the hidden states of {kind} by {worst:.2g} of their size, expected at most "
            f"{bound:g}. Leave --compile out."
        )
    return f"compiled {len(layers)} layers (hidden states within {worst:.1g})"


@contextmanager
def plainly() -> Iterator[None]:
    """Run plain layers inside the block, which must have no gradient: a layer is recomputed as it was computed."""
    before = _plainly.set(True)
    try:
        yield
    finally:
        _plainly.reset(before)


def _either(plain: Any) -> Any:
    """Return a forward pass that is compiled outside of ``plainly``."""
    compiled = torch.compile(plain, dynamic=True)

    def forward(self: Any, *arguments: Any, **named: Any) -> Any:
        return (plain if _plainly.get() else compiled)(self, *arguments, **named)

    return forward


@torch.no_grad()
def _states(policy: TokenModel) -> Tensor:
    """Return hidden states ``(32, H)`` of two rows."""
    ids = (torch.arange(32) * 7 + 3) % policy.inner.config.get_text_config().vocab_size
    return policy.hidden([Sequence(row, torch.ones_like(row, dtype=torch.bool)) for row in ids.split([13, 19])])[0]
