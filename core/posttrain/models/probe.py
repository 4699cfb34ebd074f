"""Two checks at load time: does the core's short cut give what the model itself gives?"""

from __future__ import annotations

import torch

from posttrain.engine import attention
from posttrain.engine.forward import TokenModel, _packed, _padded
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
def keeps_documents_apart(policy: TokenModel) -> bool:
    """Whether rows behind each other give the hidden states that they give alone (M4)."""
    config = policy.inner.config.get_text_config()
    if not set(getattr(config, "layer_types", None) or _ATTENDING) <= _ATTENDING:
        return False
    implementation = config._attn_implementation or ""
    if implementation != attention.NAME and not implementation.startswith("flash"):
        return False
    rows = [_sample(policy, 9, 3), _sample(policy, 5, 11)]
    decoder = getattr(policy.inner, policy.inner.base_model_prefix)
    try:
        packed = _packed(decoder, rows, [9, 5], policy.device)
    except (attention.NotSupported, TypeError, ValueError, RuntimeError):  # the family takes no such argument
        return False
    plain = _padded(decoder, rows, [9, 5], policy.device)
    return bool((packed - plain).abs().max() <= _tolerance(policy) * plain.abs().max())


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
            f"{type(policy.inner).__name__} changes its logits after the vocabulary projection in a way that is not known "
            f"here (largest difference {worst:.3g}). Report the model family, or choose another model."
        )
