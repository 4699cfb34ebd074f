"""Whether log-probs and gradients equal plain transformers', one row at a time, for every family of causal models.

Run with ``python benchmarks/architectures.py`` (about a quarter of an hour on two cores), or with ``--family gemma2
--family qwen2`` for some; ``--jobs 2`` works on two families at a time, ``--dtype float32`` in another type. For each
family of transformers' ``AutoModelForCausalLM`` a tiny model with random weights is written to a folder and loaded as a
run would load it. Eight rows of unlike length, some with the same prompt and some longer than the window, go through in
one pass; the reference is eager attention, each row alone through a copy of the model that has read nothing before.
Then a few completions are sampled, whose log-probs must be the reference's too.

A family with a sliding window is tried with two of them, and ``VARIANTS`` adds what default configurations do not have.
Prints a table and writes ``results/architectures.json``. Dropout and a router's noise are 0 throughout.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
#: Largest difference of a log-prob (in nats), and of a gradient relative to the largest entry of all.
TOLERANCE = 1e-4
VOCABULARY = 192
WINDOWS = (16, 32)
SECONDS = 240

#: Largest difference of a gradient in bfloat16, whose numbers have eight bits.
ROUNDED = 2e-2

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


@dataclass
class Result:
    """What was found of one family in one form."""

    name: str
    dtype: str = ""
    kind: str = "unbuilt"
    """packed, padded, refused, wrong, traceback or unbuilt (no tiny model could be made)."""
    line: str = ""
    """The reason that was said, or the last line of the error."""
    logps: float = 0.0
    """Largest difference of a log-prob, in nats."""
    gradients: float = 0.0
    sampled: float | None = None
    """Largest difference of a sampled token's log-prob; None where nothing could be sampled."""
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


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


def alone(model: Any, sequences: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Log-probs ``(t,)`` of each row and the gradient of their weighted sum, each row through a fresh copy."""
    import torch

    values, gradients = [], {}
    for place, sequence in enumerate(sequences):
        fresh = copy.deepcopy(model)
        logits = fresh(input_ids=sequence.ids[None], use_cache=False).logits[0, :-1]  # (L - 1, V)
        logps = logits.log_softmax(-1).gather(1, sequence.ids[1:, None])[:, 0][sequence.trained[1:]]  # (t,)
        (logps * weights(place, len(logps), logps.dtype)).sum().backward()
        values.append(logps.detach())
        for name, weight in fresh.named_parameters():
            if weight.grad is not None:
                gradients[name] = gradients.get(name, torch.zeros_like(weight)) + weight.grad
    return values, gradients


def weights(row: int, count: int, dtype: Any) -> Any:
    """Unlike factors for the tokens of a row."""
    import torch

    return torch.cos(torch.arange(count, dtype=dtype) + row)


def worst(found: Any, wanted: Any) -> float:
    """Largest difference; infinite where something is not a number."""
    import torch

    difference = (found - wanted).abs().max() if found.numel() else torch.zeros(())
    return float(difference) if bool(torch.isfinite(difference)) else float("inf")


def compare(model: Any, policy: Any, sequences: list[Any], result: Result) -> None:
    """Fill in the differences of log-probs and gradients."""
    import torch
    from posttrain.network.chunked_head import TokenQuery

    wanted, gradients = alone(model, sequences)
    found = policy(sequences, TokenQuery())["logps"]
    pieces = found.split([len(one) for one in wanted])
    loss = sum((p * weights(place, len(p), p.dtype)).sum() for place, p in enumerate(pieces))
    loss.backward()
    result.logps = worst(found.detach(), torch.cat(wanted).to(found.dtype))
    largest = max(float(one.abs().max()) for one in gradients.values())
    ours = dict(policy.inner.named_parameters())
    for name, gradient in gradients.items():
        mine = ours[name].grad
        mine = torch.zeros_like(gradient) if mine is None else mine
        result.gradients = max(result.gradients, worst(mine, gradient) / largest)


def sample(model: Any, loaded: Any, result: Result) -> None:
    """Fill in how far sampled log-probs are from those of the whole texts, each alone."""
    import torch
    from posttrain.contract.generation import Sampling
    from posttrain.contract.views import Sequence
    from posttrain.generation.local.hf import HfGenerator

    generator = HfGenerator(loaded.policy.model, loaded.tokenizer, set(), batch_size=4)
    prompts = [one.ids[:length] for one, length in zip(rows()[:3], (12, 6, 4), strict=True)]
    completions = generator.generate(prompts, Sampling(max_new_tokens=16), [[1, 2], [3], [4]])
    pairs = [(p, one) for p, own in zip(prompts, completions, strict=True) for one in own]
    texts = [torch.cat([prompt, one.ids]) for prompt, one in pairs]
    sequences = [Sequence(t, torch.arange(len(t)) >= len(p)) for t, (p, _) in zip(texts, pairs, strict=True)]
    with torch.no_grad():
        result.sampled = 0.0
        for sequence, (_, one) in zip(sequences, pairs, strict=True):
            logits = copy.deepcopy(model)(input_ids=sequence.ids[None], use_cache=False).logits[0, :-1]
            logps = logits.log_softmax(-1).gather(1, sequence.ids[1:, None])[:, 0][sequence.trained[1:]]
            result.sampled = max(result.sampled, worst(one.logps.to(logps.dtype), logps))


#: What transformers lists among causal models and cannot be tried here -> why.
LEFT_OUT = {
    "gemma3n": "needs timm; gemma3n_text is tried",
    "gemma4_assistant": "drafts for another model, whose states it reads",
    "gemma4_unified_assistant": "drafts for another model, whose states it reads",
    "musicgen": "reads several codebooks of sound in place of a text",
    "musicgen_melody": "reads several codebooks of sound in place of a text",
}


def last_line(error: BaseException) -> str:
    """Type and first line of an error, and where it was raised."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "posttrain" in f.filename] or [None]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames[-1] else ""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:240]}{where}"


def examine(family: str, form: str, changes: dict[str, Any], dtype: str, folder: Path) -> Result:
    """Everything of one form of a family."""
    import torch
    from posttrain.errors import PosttrainError
    from posttrain.models.load import load_policy
    from posttrain.settings import Settings
    from posttrain_testkit.tiny import tiny_tokenizer

    result = Result(f"{family} {form}".strip())
    kind = getattr(torch, dtype)
    begun = time.perf_counter()
    try:
        model = build(family, changes, kind)
        model.save_pretrained(folder / "model")
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    except Exception as error:
        result.line = last_line(error)
        return result
    try:
        result.dtype = dtype
        tokenizer = tiny_tokenizer()
        loaded = load_policy(str(folder / "model"), tokenizer, Settings(device="cpu", dtype=dtype, cache="off").model)
        result.notes = loaded.notes
        compare(model, loaded.policy, rows(), result)
        most = ROUNDED if dtype == "bfloat16" else TOLERANCE
        right = result.logps <= most and result.gradients <= most
        layout = "packed" if loaded.policy.packed else "padded"
        result.kind = layout if right else "wrong"
        result.line = "; ".join(loaded.notes) if right else layout
        if right:
            sample(model, loaded, result)
            if result.sampled is not None and result.sampled > most:
                result.kind, result.line = "wrong", f"{layout}, sampled"
    except PosttrainError as error:
        if dtype == "float64" and "Double" in str(error):
            return examine(family, form, changes, "float32", folder)
        later = result.kind in ("packed", "padded")  # trains; cannot be sampled from, and says so
        result.kind, result.line = (result.kind if later else "refused"), str(error)
    except Exception as error:
        result.kind, result.line = "traceback", last_line(error)
    result.seconds = round(time.perf_counter() - begun, 1)
    return result


def examine_families(families: list[str], dtype: str) -> None:
    """Print all forms of each family, a line of JSON a family."""
    warnings.simplefilter("ignore")
    for family in families:
        found = []
        if family in LEFT_OUT:
            print(json.dumps([vars(Result(family, line=LEFT_OUT[family]))]), flush=True)
            continue
        try:
            kinds = forms(family)
        except Exception as error:
            kinds = {}
            found.append(Result(family, line=last_line(error)))
        for form, changes in kinds.items():
            with tempfile.TemporaryDirectory() as place:
                found.append(examine(family, form, changes, dtype, Path(place)))
        print(json.dumps([vars(one) for one in found]), flush=True)


def in_processes(families: list[str], dtype: str) -> Iterator[Result]:
    """The same in a process of its own: a family that crashes or hangs is one line of the table."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    families = list(families)
    while families:
        command = [sys.executable, __file__, "--dtype", dtype, "--inside", *families]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as child:
            assert child.stdout is not None
            while families:
                timer = threading.Timer(SECONDS, child.kill)
                timer.start()
                line = child.stdout.readline()
                timer.cancel()
                family = families.pop(0)
                if not line.startswith("["):
                    child.kill()
                    yield Result(
                        family, kind="traceback", line=f"the process ended, or took more than {SECONDS} seconds"
                    )
                    break
                yield from (Result(**facts) for facts in json.loads(line))


def summary(results: list[Result]) -> dict[str, int]:
    """How many of each kind."""
    return dict(Counter(one.kind for one in results).most_common())


def table(results: list[Result]) -> str:
    """Totals as a row under a head, as the documentation has them."""
    counts = Counter(one.kind for one in results)
    families = {one.name.split()[0] for one in results}
    kinds = ("packed", "padded", "refused", "wrong", "traceback", "unbuilt")
    heads = ("families", "forms", *kinds[:-1], "cannot be made here")
    figures = (len(families), len(results), *(counts[kind] for kind in kinds))
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (heads, ["---"] * len(heads), figures))


def kept(file: Path | None) -> list[Result]:
    """What an earlier run has found."""
    if file is None or not file.exists():
        return []
    return [Result(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def show(one: Result) -> str:
    """A line of the table."""
    sampled = "-" if one.sampled is None else f"{one.sampled:.1e}"
    figures = f"{one.logps:9.1e}{one.gradients:9.1e}{sampled:>9}{one.seconds:6.1f}"
    return f"{one.name:32}{one.kind:11}{figures}  {one.line[:200]}"


def main() -> None:
    """Examine families and write down what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", action="append", help="this one, by its model_type [all]")
    parser.add_argument("--dtype", choices=("float64", "float32", "bfloat16"), default="float64")
    parser.add_argument("--jobs", type=int, default=1, help="families at a time [1]")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "architectures.json")
    parser.add_argument("--kept", type=Path, help="a file of JSON lines: forms already there are not tried again")
    parser.add_argument("--inside", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        examine_families(options.inside, options.dtype)
        return
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as known

    results = kept(options.kept)
    tried = {one.name.split()[0] for one in results}
    families = [family for family in options.family or sorted(known) if family not in tried]
    lock = threading.Lock()

    def work(own: list[str]) -> None:
        for one in in_processes(own, options.dtype):
            with lock:
                results.append(one)
                print(show(one), flush=True)
                if options.kept:
                    with options.kept.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(vars(one)) + "\n")

    workers = [threading.Thread(target=work, args=(families[n :: options.jobs],)) for n in range(options.jobs)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    results.sort(key=lambda one: one.name)
    print(table(results))
    if not options.family:
        facts = {"dtype": options.dtype, "totals": summary(results), "families": [vars(one) for one in results]}
        options.output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
