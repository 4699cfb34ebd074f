"""Tiny models of every family of transformers' causal models: a family's own configuration, made small."""

from __future__ import annotations

from typing import Any

VOCABULARY = 192
WINDOWS = (16, 32)

#: Field of a configuration -> its value in a tiny model. Nested configurations get the same.
TINY: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "entity_vocab_size"), VOCABULARY),
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size", "word_embed_proj_dim"), 64
    ),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers", "num_ngram_layers", "num_nextn_predict_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("num_encoder_attention_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "multi_query_group_num", "num_global_key_value_heads"), 2),
    **dict.fromkeys(("swa_num_key_value_heads",), 2),
    **dict.fromkeys(("head_dim", "global_head_dim", "dim_head", "attention_head_dim", "d_kv", "kv_channels"), 16),
    **dict.fromkeys(("swa_head_dim", "swa_v_head_dim", "v_head_dim", "qk_nope_head_dim"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "index_head_dim"), 8),
    "qk_head_dim": 24,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "index_n_heads": 2,
    "index_topk": 512,
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff", "dim_ff", "decoder_ffn_dim", "dff"), 96),
    **dict.fromkeys(("encoder_ffn_dim", "ffn_hidden_size", "expert_ffn_hidden_size", "intermediate_size_mlp"), 96),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "expert_dim", "expert_hidden_size"), 48
    ),
    **dict.fromkeys(("shared_intermediate_size", "moe_shared_expert_intermediate_size", "dense_intermediate_size"), 48),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("n_group", "topk_group", "zero_expert_num"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"), 1),
    "num_kv_shared_layers": 0,
    "rotary_dim": 8,
    **dict.fromkeys(("indexer_n_heads", "indexer_compress_ratio"), 2),
    **{"indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 512},
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"), 512),
    **dict.fromkeys(("max_sequence_length", "context_length"), 512),
    **dict.fromkeys(("hidden_size_per_layer_input",), 8),
    "vocab_size_per_layer_input": VOCABULARY,
    "sliding_window": WINDOWS[0],
    **dict.fromkeys(("attention_window_size", "local_attention", "window_size", "attention_chunk_size"), WINDOWS[0]),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "linear_num_key_heads", "linear_num_heads"), 4),
    **dict.fromkeys(("linear_num_value_heads", "n_mamba_heads", "kda_num_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 16),
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size"), 8),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 16),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_d_ssm"), 1),
    **dict.fromkeys(("lru_width", "attention_hidden_size"), 64),
    "mamba_dt_rank": 4,
    "time_step_rank": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
    "init_std": 0.2,
    "is_decoder": True,
    "use_cache": True,
}
#: What a family needs besides; ``...`` leaves a field to the class.
NEEDS: dict[str, dict[str, Any]] = {
    "bamba": {"layer_types": ..., "attn_layer_indices": [1], "mamba_n_heads": 8},
    "falcon_h1": {"layer_types": ..., "mamba_d_ssm": 128, "mamba_n_heads": 8},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_n_heads": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "mamba2": {"num_heads": 8},
    "zamba2": {
        "layer_types": ["linear_attention", "hybrid"] * 2,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "hybrid_layer_ids": [1, 3],
        "num_hidden_layers": 4,
        "mamba_headdim": 32,
        "n_mamba_heads": 4,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "head_dim": 32,
        "num_key_value_heads": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "zamba": {
        "layer_types": ["linear_attention", "hybrid"] * 2,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "num_hidden_layers": 4,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "head_dim": 32,
        "num_key_value_heads": 4,
        "n_mamba_heads": 2,
        "use_mamba_kernels": False,
    },
    "longcat_flash": {"head_dim": 8},
    "xmod": {"default_language": "en_XX"},
    "reformer": {"axial_pos_embds": False, "is_decoder": True},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
            for kind in ("full_attention", "sliding_attention")
        },
    },
}
#: What default configurations do not have, by family and name.
ROPE = {"rope_theta": 10000.0}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "phi3": {
        "longrope": {
            "max_position_embeddings": 512,
            "original_max_position_embeddings": 32,
            "sliding_window": None,
            "rope_parameters": {
                **ROPE,
                "rope_type": "longrope",
                "short_factor": [1.0] * 8,
                "long_factor": [1.0 + 0.5 * place for place in range(8)],
                "original_max_position_embeddings": 32,
                "factor": 16.0,
            },
        },
    },
    "llama": {
        "dynamic": {"max_position_embeddings": 32, "rope_parameters": {**ROPE, "rope_type": "dynamic", "factor": 4.0}},
        "linear": {"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 4.0}},
        "yarn": {
            "rope_parameters": {**ROPE, "rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 32},
        },
    },
    "falcon": {"alibi": {"alibi": True}, "new": {"new_decoder_architecture": True, "num_kv_heads": 2}},
    "gemma2": {"cap5": {"attn_logit_softcapping": 5.0}},
    "vaultgemma": {"cap5": {"attn_logit_softcapping": 5.0}},
}


def shrink(facts: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The fields of a tiny configuration, from those of the default one."""
    found: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, dict) and "model_type" in value:
            found[name] = shrink(value, {}) | {"model_type": value["model_type"]}
        elif isinstance(value, float) and any(part in name for part in ("drop", "jitter")):
            found[name] = 0.0
        elif name in TINY and not isinstance(value, list | dict):
            found[name] = TINY[name]
    kinds = list(dict.fromkeys(facts.get("layer_types") or []))
    if kinds and (len(kinds) > 1 or "sliding_window" not in changes):
        kinds = kinds if len(kinds) > 1 else kinds * 2
        found |= {"layer_types": kinds, "num_hidden_layers": len(kinds)}
    if "qk_rope_head_dim" in facts:
        found.pop("head_dim", None)
        found["num_key_value_heads"] = TINY["num_attention_heads"]
    return {name: value for name, value in (found | changes).items() if value is not ...}


def default_facts(family: str) -> dict[str, Any]:
    """Fields of the family's default configuration, inner configurations included."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(family)
    facts = config.to_dict()
    for name, kind in getattr(type(config), "sub_configs", {}).items():
        if not isinstance(facts.get(name), dict) and hasattr(kind, "model_type"):
            facts[name] = kind().to_dict()
    return {**{name: getattr(config, name, None) for name in getattr(config, "attribute_map", {})}, **facts}


def forms(family: str) -> dict[str, dict[str, Any]]:
    """Name -> changes, of every form in which a family is tried."""
    facts = default_facts(family)
    text = facts.get("text_config") if isinstance(facts.get("text_config"), dict) else facts
    needed = NEEDS.get(family, {})
    found = {"": needed}
    if "sliding_window" in text and text is facts:
        for window in WINDOWS:
            changes = needed | {"sliding_window": window}
            changes |= {"use_sliding_window": True} if "use_sliding_window" in facts else {}
            changes |= {"max_window_layers": 1} if "max_window_layers" in facts else {}
            found[f"window {window}"] = changes
    return found | {name: needed | changes for name, changes in VARIANTS.get(family, {}).items()}


def build(family: str, changes: dict[str, Any], dtype: Any) -> Any:
    """A tiny model with random weights and eager attention, which can read; in float32 where it knows no float64."""
    import torch

    model = make(family, changes, dtype)
    try:
        with torch.no_grad():  # some keep their state
            model(input_ids=rows()[0].ids[None], use_cache=False)
    except RuntimeError as error:
        if dtype != torch.float64 or not any(word in str(error) for word in ("Double", "without overflow")):
            raise
        return build(family, changes, torch.float32)
    return model


def make(family: str, changes: dict[str, Any], dtype: Any) -> Any:
    """A tiny model with random weights and eager attention."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    facts = shrink(default_facts(family), changes)
    config = AutoConfig.for_model(family, **facts)
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(dtype)
    with torch.no_grad():
        for weight in model.parameters():  # what begins at 0 or 1 hides what is done with it
            weight.add_(0.02 * torch.randn_like(weight))
    return model.eval()


def rows() -> list[Any]:
    """Eight sequences of unlike length: pairs with one prompt, one begun like another, two longer than any window."""
    import torch
    from posttrain.contract.views import Sequence

    draw = torch.Generator().manual_seed(3)

    def text(length: int) -> Any:
        return torch.randint(4, VOCABULARY, (length,), generator=draw)

    shared, trunk = text(12), text(20)
    prompts = [
        shared,
        shared,
        text(5),
        torch.cat([trunk, text(3)]),
        torch.cat([trunk, text(6)]),
        trunk,
        text(40),
        text(9),
    ]
    answers = (7, 11, 4, 30, 9, 2, 25, 17)
    found = []
    for prompt, count in zip(prompts, answers, strict=True):
        ids = torch.cat([prompt, text(count)])
        found.append(Sequence(ids, torch.arange(len(ids)) >= len(prompt)))
    return found
