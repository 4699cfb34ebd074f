"""posttrain beside its peers on a GPU: SFT, DPO and GRPO at the shapes of a 1B and an 8B model with random weights.

    python benchmarks/gpu_peers.py [--peer-python PYTHON] [--shapes 1b 8b] [--works sft dpo grpo] [--ways full lora]

Each measurement is a process of its own, the sides in turn, in bfloat16 with the same rows, tokens, optimiser and
recomputation. The peers are TRL, TRL with Liger's kernels and Unsloth, whichever of them ``--peer-python`` can import;
GRPO samples through vLLM on both sides where it is installed. A row of the result holds tokens (GRPO: completions) a
second over all steps but the first two, the largest amount of memory allocated, and the share of the chip's arithmetic
(6 operations a trained weight and token, 4 with an adapter, and attention's products; ``--peak`` names the chip's
bfloat16 TFLOP/s where it is not in the list). Finished rows are kept, so that a run that was stopped goes on.

Without a GPU ``--shapes tiny --device cpu`` runs the same code in minutes; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LLAMA = {"hidden_act": "silu", "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 8192}
#: Sizes of the model, of a step in rows, and of a row in letters, which are tokens.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 64, "rows": 8, "letters": 24, "new": 8},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128_256, "rows": 32, "letters": 1024, "new": 512},
    "8b": {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128_256, "rows": 16, "letters": 1024, "new": 512},
}  # fmt: skip
#: bfloat16 TFLOP/s of chips without sparsity, by a part of their names.
PEAKS = {"H200": 989, "H100": 989, "B200": 2250, "A100": 312, "L40S": 362, "L4": 121, "4090": 165, "3090": 71}
SIDES = {"posttrain": "posttrain", "trl": "trl", "trl-liger": "liger_kernel", "unsloth": "unsloth"}
RANK = 16
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def write_model(folder: Path, shape: str) -> None:
    """Write a Llama with random weights in bfloat16, and a tokenizer of single letters."""
    import torch
    from posttrain_testkit.tiny import tiny_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {name: value for name, value in SHAPES[shape].items() if name not in ("rows", "letters", "new")}
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(LlamaConfig(**sizes, **LLAMA)).to(torch.bfloat16)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def rows_of(work: str, shape: str, steps: int) -> list[dict[str, str]]:
    """Rows of log-normal lengths, the same for every side."""
    dice, sizes = random.Random(0), SHAPES[shape]
    group = 8 if work == "grpo" else 1

    def text(share: float) -> str:
        mean = sizes["letters"] * share
        length = min(int(mean * dice.lognormvariate(-0.125, 0.5)) + 2, 2 * sizes["letters"])
        return "".join(dice.choices("abcdefgh", k=length))

    found = []
    for _ in range(max(1, sizes["rows"] // group) * steps):
        row = {"prompt": text(0.25)}
        if work == "sft":
            row["completion"] = text(0.75)
        elif work == "dpo":
            row |= {"chosen": text(0.75), "rejected": text(0.75)}
        found.append(row)
    return found


def vowels(completions: list[Any], **columns: Any) -> list[float]:
    """The reward of both sides: the share of the letter a."""
    return [text.count("a") / max(1, len(text)) for text in completions]


def ours(given: dict[str, Any], rows: list[dict[str, str]], output: str) -> dict[str, Any]:
    """Train with posttrain; seconds at which each step ended, tokens, losses."""
    from posttrain import api, hookimpl

    class Clock:
        def __init__(self) -> None:
            self.ends: list[float] = []

        @hookimpl
        def posttrain_step_done(self) -> None:
            self.ends.append(time.perf_counter())

    clock, sizes, cpu = Clock(), SHAPES[given["shape"]], given["device"] == "cpu"
    group = 8 if given["work"] == "grpo" else 1
    options: dict[str, Any] = {
        "steps": given["steps"],
        "batch_size": max(1, sizes["rows"] // group),
        "dtype": "float32" if cpu else "bfloat16",
        "gradient_checkpointing": given["checkpointing"],
        "max_length": 4 * sizes["letters"],
        **{"learning_rate": 1e-5, "schedule": "constant", "weight_decay": 0.0, "shuffle": False, "cache": "off"},
        **{"progress": "quiet", "device": given["device"], "verify_saved": False, "report": False},
    }
    if given["way"] == "lora":
        options |= {"lora": True, "lora_rank": RANK}
    if given["work"] == "grpo":
        options |= {"group_size": group, "max_new_tokens": sizes["new"], "beta": 0.0, "reward": vowels}
        options["generation"] = "vllm" if given["vllm"] else "hf"
    run = api.train(given["work"], model=given["model"], data=rows, observers=[clock], output=output, **options)
    return {"ends": clock.ends, "losses": [line["loss"] for line in run.metrics], "tokens": _tokens(run.metrics)}


def _tokens(lines: list[dict[str, Any]]) -> list[float]:
    return [line["tokens"] for line in lines]


def theirs(given: dict[str, Any], rows: list[dict[str, str]], output: str) -> dict[str, Any]:
    """Train with TRL, with Liger's kernels or Unsloth's model where asked; the same figures as ``ours``."""
    model: Any = given["model"]
    if given["side"] == "unsloth":
        model = _unsloth(given)  # before trl, which it patches
    import trl
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *words: Any, **named: Any) -> None:
            ends.append(time.perf_counter())

    sizes, cpu = SHAPES[given["shape"]], given["device"] == "cpu"
    kind = {"sft": "SFT", "dpo": "DPO", "grpo": "GRPO"}[given["work"]]
    shared: dict[str, Any] = {
        **{"output_dir": output, "max_steps": given["steps"], "per_device_train_batch_size": sizes["rows"]},
        **{"learning_rate": 1e-5, "lr_scheduler_type": "constant", "weight_decay": 0.0, "logging_steps": 1},
        **{"report_to": [], "save_strategy": "no", "disable_tqdm": True, "seed": 0, "use_cpu": cpu, "bf16": not cpu},
        "gradient_checkpointing": given["checkpointing"],
        "use_liger_kernel": given["side"] == "trl-liger",
        "include_num_input_tokens_seen": "non_padding",
    }
    if isinstance(model, str):
        shared["model_init_kwargs"] = {"dtype": "float32" if cpu else "bfloat16"}
    if given["work"] == "grpo":
        shared |= {"num_generations": 8, "max_completion_length": sizes["new"], "beta": 0.0, "loss_type": "grpo"}
        shared |= {"use_vllm": given["vllm"]} | ({"vllm_mode": "colocate"} if given["vllm"] else {})
    else:
        shared |= {"max_length": 4 * sizes["letters"], "train_sampling_strategy": "sequential"}
    if given["work"] != "dpo":
        shared["shuffle_dataset"] = False
    adapter = given["way"] == "lora" and given["side"] != "unsloth"
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS, task_type="CAUSAL_LM")
    trainer = getattr(trl, f"{kind}Trainer")(
        model=model,
        args=getattr(trl, f"{kind}Config")(**shared),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(given["model"]),
        **({"peft_config": config} if adapter else {}),
        **({"reward_funcs": vowels} if given["work"] == "grpo" else {}),
    )
    trainer.add_callback(Clock())
    trainer.train()
    log = [line for line in trainer.state.log_history if "loss" in line]
    seen = [line.get("num_input_tokens_seen", line.get("num_tokens", 0.0)) for line in log]
    return {"ends": ends, "losses": [line["loss"] for line in log], "tokens": _steps(seen)}


def _steps(totals: list[float]) -> list[float]:
    return [after - before for before, after in zip([0.0, *totals], totals, strict=False)]


def _unsloth(given: dict[str, Any]) -> Any:
    import torch
    from unsloth import FastLanguageModel

    longest, full = 4 * SHAPES[given["shape"]]["letters"], given["way"] == "full"
    model, _ = FastLanguageModel.from_pretrained(
        given["model"], max_seq_length=longest, dtype=torch.bfloat16, load_in_4bit=False, full_finetuning=full
    )
    if full:
        return model
    recompute = "unsloth" if given["checkpointing"] else False
    return FastLanguageModel.get_peft_model(
        model, r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS, use_gradient_checkpointing=recompute
    )


def one(given: dict[str, Any]) -> None:
    """Measure one side in this process and print what it came to."""
    import torch

    rows = rows_of(given["work"], given["shape"], given["steps"])
    side = ours if given["side"] == "posttrain" else theirs
    with tempfile.TemporaryDirectory() as output:
        found = side(given, rows, f"{output}/run")
    if given["device"] == "cuda":
        found["memory_gb"] = torch.cuda.max_memory_allocated() / 2**30
        found["chip"] = torch.cuda.get_device_name()
    else:
        from posttrain.runs.facts import peak_memory_mb

        found |= {"memory_gb": peak_memory_mb() / 2**10, "chip": "cpu"}
    print(json.dumps(found))


def operations(shape: str, way: str, length: float) -> float:
    """Operations of a token's forward and backward pass: weights that multiply, the head, and attention's products."""
    s = SHAPES[shape]
    width = s["hidden_size"] // s["num_attention_heads"]
    attention = s["hidden_size"] * width * (2 * s["num_attention_heads"] + 2 * s["num_key_value_heads"])
    layer = attention + 3 * s["hidden_size"] * s["intermediate_size"]
    weights = s["num_hidden_layers"] * layer + s["hidden_size"] * s["vocab_size"]
    products = s["num_hidden_layers"] * 2 * s["num_attention_heads"] * width * length / 2  # each token sees half
    return (4 if way == "lora" else 6) * weights + 6 * products


def figures(found: dict[str, Any], given: dict[str, Any], peak: float | None) -> dict[str, Any]:
    """What is kept of a measurement."""
    ends, sizes = found["ends"], SHAPES[given["shape"]]
    seconds = ends[-1] - ends[1]
    steps = len(ends) - 2
    grpo = given["work"] == "grpo"
    amount = steps * sizes["rows"] if grpo else sum(found["tokens"][2:])
    kept = {
        ("completions_per_second" if grpo else "tokens_per_second"): round(amount / seconds, 1),
        "memory_gb": round(found["memory_gb"], 2),
        "losses": [round(value, 5) for value in found["losses"]],
    }
    if peak is not None and not grpo:
        rate = amount / seconds * operations(given["shape"], given["way"], sizes["letters"])
        kept["share_of_arithmetic"] = round(rate / (peak * 1e12), 3)
    return kept


def has(python: str, module: str) -> bool:
    """Tell whether an interpreter finds a module."""
    code = f"import importlib.util as u, sys; sys.exit(u.find_spec('{module}') is None)"
    return subprocess.run([python, "-c", code], check=False).returncode == 0


def apart(python: str, given: dict[str, Any]) -> dict[str, Any]:
    """Measure one side in a process of its own; a failure is a row that says why."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [python, str(HERE / "gpu_peers.py"), "--one", json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        return {"failed": lines[-1][:300]}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    """Measure every combination that is not in the result yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable, help="Python that can import TRL, Liger or Unsloth")
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=["1b", "8b"])
    parser.add_argument("--works", nargs="*", choices=("sft", "dpo", "grpo"), default=["sft", "dpo", "grpo"])
    parser.add_argument("--ways", nargs="*", choices=("full", "lora"), default=["full", "lora"])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--peak", type=float, help="bfloat16 TFLOP/s of the chip")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "gpu_peers.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(json.loads(options.one))
        return 0
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("There is no NVIDIA GPU. Expected one, or: --shapes tiny --device cpu", file=sys.stderr)
        return 2
    pythons = {"posttrain": sys.executable} | dict.fromkeys(("trl", "trl-liger", "unsloth"), options.peer_python)
    sides = [side for side, module in SIDES.items() if has(pythons[side], module)]
    if options.device == "cpu":
        sides = [side for side in sides if side in ("posttrain", "trl")]
    print(f"sides: {', '.join(sides)}", flush=True)
    rows: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    for shape in options.shapes:
        with tempfile.TemporaryDirectory() as folder:
            write_model(Path(folder), shape)
            for work, way, side in ((w, y, s) for w in options.works for y in options.ways for s in sides):
                name = f"{shape} {work} {way} {side}"
                if name in rows and "failed" not in rows[name]:
                    continue
                vllm = options.device == "cuda" and all(has(pythons[one], "vllm") for one in ("posttrain", side))
                given = {"shape": shape, "work": work, "way": way, "side": side, "model": folder, "vllm": vllm}
                given |= {"steps": options.steps, "device": options.device, "checkpointing": shape == "8b"}
                found = apart(pythons[side], given)
                if "failed" not in found:
                    peak = options.peak or next((v for k, v in PEAKS.items() if k in found["chip"]), None)
                    found = {"chip": found["chip"]} | figures(found, given, peak)
                rows[name] = found
                print(name, json.dumps(found), flush=True)
                options.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
