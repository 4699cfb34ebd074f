"""Arithmetic of a model's passes."""

from __future__ import annotations

import torch

from posttrain.network.token_model import TokenModel
from posttrain.settings import ModelSettings


def casts_to_bfloat16(settings: ModelSettings, policy: TokenModel) -> bool:
    """Return whether matrices are multiplied in bfloat16 with wider weights."""
    if settings.autocast is not None:
        return settings.autocast
    single = next(policy.parameters()).dtype == torch.float32
    return policy.device.type == "cuda" and single and torch.cuda.is_bf16_supported()
