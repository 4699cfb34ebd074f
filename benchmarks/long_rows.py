"""Memory of one long row: through the vocabulary projection alone, and through a model whose rows are cut.

    python benchmarks/long_rows.py head       # 12,500 and 100,000 tokens, about five minutes
    python benchmarks/long_rows.py context    # a row of 8,192 tokens on one, two and four processes, about four minutes

``head``: each length in a process of its own, as ``head_memory.py`` measures it: how far resident memory rises above
what it was before the forward pass, backward pass included, beside what full logits of that length would take.
``context``: two steps of sft over one row with ``--strategy fsdp --context-parallel N``, on CPUs: losses, and how far
the resident memory of each process rises above what it was before the run. Results go to ``results/long_rows.json``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # the benchmarks are no package that is installed

from benchmarks import head_memory  # noqa: E402  (found through the line above)

RESULTS = HERE / "results" / "long_rows.json"
LENGTHS = (12_500, 100_000)
ROW, PROCESSES = 8192, (1, 2, 4)
#: A model whose activations, not weights, are what a long row takes.
MODEL = {
    "vocab_size": 13,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": ROW,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def main() -> int:
    """Measure what was asked for and write it beside what was measured before. Returns the exit status."""
    kinds = {"head": _heads, "context": _contexts}
    if sys.argv[1:2] == ["measure-head"]:
        print(json.dumps(_head(int(sys.argv[2]))))
        return 0
    if sys.argv[1:2] == ["measure-context"]:
        _context(Path(sys.argv[2]), int(sys.argv[3]))
        return 0
    if len(sys.argv) != 2 or sys.argv[1] not in kinds:
        print(__doc__, file=sys.stderr)
        return 2
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[sys.argv[1]] = kinds[sys.argv[1]]()
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results[sys.argv[1]], indent=1))
    return 0


def _heads() -> list[dict[str, float]]:
    return [json.loads(_run([sys.executable, __file__, "measure-head", str(n)]).splitlines()[-1]) for n in LENGTHS]


def _head(tokens: int) -> dict[str, float]:
    """Rise of resident memory of a trained head over ``tokens`` hidden states, their own gradient included."""
    import torch

    vocabulary, size = head_memory.VOCABULARY, head_memory.HIDDEN
    torch.manual_seed(0)
    head_memory._chunked(*head_memory._material(torch, 8, 64, 16, True), chunk=256)
    hidden, labels, projection = head_memory._material(torch, tokens, vocabulary, size, True)
    before, begun = head_memory._reset_peak(), time.perf_counter()
    loss = head_memory._chunked(hidden, labels, projection, chunk=256)
    seconds = time.perf_counter() - begun
    peak = (head_memory._status("VmHWM") - before) / 1024
    own = (hidden.nbytes + projection.weight.nbytes) / 2**20  # gradients, which both ways have
    full = tokens * vocabulary * 4 / 2**20
    found = {"tokens": tokens, "peak_mb": peak, "gradients_mb": own, "one_copy_of_full_logits_mb": full}
    return found | {"loss": loss, "seconds": seconds}


def _contexts() -> list[dict[str, Any]]:
    rows = []
    for count in PROCESSES:
        with tempfile.TemporaryDirectory() as folder:
            start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
            _run([*start, __file__, "measure-context", folder, str(count)])
            found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(count)]
        rows.append({"processes": count, "losses": found[0]["losses"], "peaks_mb": [one["peak_mb"] for one in found]})
    return rows


def _context(folder: Path, processes: int) -> None:
    """One process of a run over a row of ``ROW`` tokens."""
    import torch
    import torch.distributed as dist
    from posttrain import api
    from posttrain_testkit.tiny import tiny_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**MODEL))
    row = "".join("abcdefgh"[int(one)] for one in torch.randint(8, (ROW - 1,)))
    before = head_memory._reset_peak()
    run = api.train(
        "sft",
        model=model,
        tokenizer=tiny_tokenizer(),
        data=[{"text": row}],
        output=str(folder / "run"),
        strategy="fsdp",
        context_parallel=processes,
        **{"steps": 2, "batch_size": 1, "max_length": ROW, "learning_rate": 1e-3, "device": "cpu", "cache": "off"},
        **{"progress": "quiet", "report": False, "verify_saved": False},
    )
    peak = (head_memory._status("VmHWM") - before) / 1024
    found = {"losses": [line["loss"] for line in run.metrics], "peak_mb": peak}
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"The measurement failed:\n{done.stderr[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
