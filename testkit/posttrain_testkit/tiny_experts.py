"""Mixtures of experts of a few thousand parameters, one of each family, for the tokenizer of ``tiny``."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from posttrain_testkit.tiny import tiny_tokenizer

_SIZES: dict[str, Any] = {
    "vocab_size": len(tiny_tokenizer()),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,  # large enough for tokens to choose different experts, and for these to differ
}
_DEEPSEEK: dict[str, Any] = {
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 24,
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
#: Name of transformers' model type -> fields of its configuration besides the common sizes.
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 16, "norm_topk_prob": True},
    "mixtral": {"num_local_experts": 4, "sliding_window": None},
    "deepseek_v3": _DEEPSEEK,
    "gpt_oss": {"num_local_experts": 4, "head_dim": 16, "sliding_window": 8},
    "granitemoe": {"num_local_experts": 4, "logits_scaling": 2.0, "residual_multiplier": 0.5},
}


def tiny_experts(
    family: str = "mixtral",
    head: str = "vocabulary",
    dtype: torch.dtype = torch.float32,
    seed: int = 1234,
    **changes: Any,
) -> Any:
    """Build a model of ``FAMILIES`` with four experts a layer, two for a token; no global random state changes.

    ``head`` is "vocabulary" or, where transformers has it (not for granitemoe), "reward-head"; ``changes`` are fields
    of the configuration.
    """
    config = AutoConfig.for_model(family, **(_SIZES | FAMILIES[family] | changes))
    config.num_labels = 1
    kind: Any = AutoModelForSequenceClassification if head == "reward-head" else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: torch.nn.Module = kind.from_config(config, experts_implementation="eager")
    return model.to(dtype)
