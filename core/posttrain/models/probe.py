"""Two checks at load time: does the core's short cut give what the model itself gives?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posttrain.engine import attention
from posttrain.engine.forward import TokenModel, _packed, _padded
from posttrain.engine.layout import SHORTEST_TRUNK
from posttrain.errors import ModelError
from posttrain.views import Sequence

#: transformers' names for layers that only attend; anything else carries a state across documents.
_ATTENDING = {"full_attention", "sliding_attention"}


def _sample(policy: TokenModel, length: int, offset: int) -> Sequence:
    vocabulary = policy.inner.config.get_text_config().vocab_size
    ids = (torch.arange(length) * 7 + offset) % vocabulary
    return Sequence(ids, torch.arange(length) > 0)


def _tolerance(policy: TokenModel) -> float:
    return {torch.float64: 1e-8, torch.float32: 1e-3}.get(next(policy.parameters()).dtype, 5e-2)


@torch.no_grad()
def choose_layout(policy: TokenModel) -> None:
    """Pack rows, and share their prompts, where that gives the hidden states that the rows have alone (M4)."""
    config = policy.inner.config.get_text_config()
    implementation = config._attn_implementation or ""
    policy.packed = policy.shared = False
    if not set(getattr(config, "layer_types", None) or _ATTENDING) <= _ATTENDING:
        return
    if implementation != attention.NAME and not implementation.startswith("flash"):
        return
    trunk = _sample(policy, SHORTEST_TRUNK, 2).ids
    branches = [torch.cat([trunk, _sample(policy, 2, offset).ids]) for offset in (1, 1, 3)]  # two have one prompt
    texts = [torch.cat([prompt, _sample(policy, n, n).ids]) for prompt, n in zip(branches, (5, 3, 4), strict=True)]
    rows = [_sample(policy, 9, 3), *(Sequence(ids, torch.arange(len(ids)) >= len(trunk) + 2) for ids in texts)]
    decoder = getattr(policy.inner, policy.inner.base_model_prefix)
    plain, _ = _padded(decoder, rows, policy.device)
    policy.shared = implementation == attention.NAME and _agrees(policy, decoder, rows, plain, share=True)
    policy.packed = policy.shared or _agrees(policy, decoder, rows, plain, share=False)


def _agrees(policy: TokenModel, decoder: Any, rows: list[Sequence], plain: Tensor, share: bool) -> bool:
    try:
        states, places = _packed(decoder, rows, policy.device, share)
    except (attention.NotSupported, TypeError, ValueError, RuntimeError):  # the family takes no such argument
        return False
    found = states[torch.cat(places).to(states.device)]
    return bool((found - plain).abs().max() <= _tolerance(policy) * plain.abs().max())


@torch.no_grad()
def check_logits(policy: TokenModel) -> None:
    """The head's logits must be the model's own (R11: scales, soft-caps and norms after the decoder)."""
    assert policy.head is not None
    row = _sample(policy, 8, 5)
    states, _ = policy.hidden([row])
    ours = policy.head.logits(states)  # (8, V)
    theirs = policy.inner(input_ids=row.ids[None].to(policy.device), use_cache=False).logits[0].to(ours.dtype)
    worst = float((ours - theirs).abs().max())
    if not worst <= _tolerance(policy) * max(1.0, float(theirs.abs().max())):
        raise ModelError(
            f"{type(policy.inner).__name__} changes its logits after the vocabulary projection in a way not known "
            f"here (largest difference {worst:.3g}). Report the model family, or choose another model."
        )
