"""Peak memory of the vocabulary projection, forward and backward: full logits against posttrain's chunks.

    python benchmarks/head_memory.py

Each case runs in a process of its own: hidden states and the weight are made, a few small operations warm up the
libraries, the kernel's record of the highest resident memory is reset, and only then the projection, the loss and the
gradients are computed. Reported is how far resident memory rose above what it was before the forward pass. The
gradient of the weight itself is part of it on both sides where the head is trained, and absent where it is frozen.
Exit status 1 if a ratio at the default chunk is below ``--least``, or a gradient differs by more than 1e-5.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
TOKENS, VOCABULARY, HIDDEN = 2048, 49_152, 576
GRADIENT_BOUND = 1e-5
#: Name of a case -> tokens in a chunk; None is the full logits.
CASES: dict[str, int | None] = {"full logits": None, "chunk 256": 256, "chunk 128": 128}


def main() -> int:
    """Run all cases, print the table, write the results. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--least", type=float, default=8.0, help="smallest ratio that passes")
    parser.add_argument("--repeat", type=int, default=3, help="processes per case; the median counts")
    parser.add_argument("--output", default=str(ROOT / "results" / "head_memory.json"))
    parser.add_argument("--case", nargs=3, metavar=("CHUNK", "TRAINED", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        chunk, trained, file = arguments.case
        print(json.dumps(_measure(int(chunk) or None, trained == "yes", file)))
        return 0
    if not Path("/proc/self/clear_refs").exists():
        print("head_memory.py reads /proc/self/status, which this system lacks. Run it on Linux.", file=sys.stderr)
        return 2
    return _report(arguments)


def _report(arguments: argparse.Namespace) -> int:

    default = "chunk 256"  # what a CPU gets
    rows, failed = [], False
    for trained in (True, False):
        for name, row in _cases(trained, arguments.repeat).items():
            small_ratio = name == default and row.get("ratio", 0.0) < arguments.least
            failed |= small_ratio or not row.get("gradient_difference", 0.0) <= GRADIENT_BOUND  # not a number fails too
            rows.append({"case": name, "head": "trained" if trained else "frozen"} | row)
    threads = os.environ["OMP_NUM_THREADS"]
    print(f"{TOKENS} tokens, vocabulary {VOCABULARY}, hidden size {HIDDEN}, float32, threads: {threads}")
    print(f"{'case':<12} {'head':<8} {'peak MB':>8} {'ratio':>6} {'seconds':>8} {'time ratio':>10}  gradients differ")
    for row in rows:
        ratio, times = row.get("ratio", 1.0), row.get("time_ratio", 1.0)
        difference = f"{row['gradient_difference']:.1e}" if "gradient_difference" in row else "-"
        print(
            f"{row['case']:<12} {row['head']:<8} {row['peak_mb']:>8.0f} {ratio:>6.1f} {row['seconds']:>8.2f} "
            f"{times:>10.2f} {difference:>17}"
        )
    facts = {"tokens": TOKENS, "vocabulary": VOCABULARY, "hidden": HIDDEN, "default": default, "least": arguments.least}
    Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
    Path(arguments.output).write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(f"written: {arguments.output}")
    if failed:
        print(f"FAILED: expected a ratio of {arguments.least:g} at {default}, gradients equal to {GRADIENT_BOUND:g}.")
    return int(failed)


def _cases(trained: bool, repeat: int) -> dict[str, dict[str, float]]:
    """Measurements by case; the cases are taken in turn, so that a busy spell of the machine meets all of them."""
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
        for _ in range(repeat):
            for name, chunk in CASES.items():
                found[name].append(_in_process(chunk, trained, f"{folder}/{name}.pt"))
        rows = {}
        for name in CASES:
            rows[name] = {key: statistics.median(one[key] for one in found[name]) for key in ("peak_mb", "seconds")}
            if CASES[name] is not None:
                full = rows["full logits"]
                rows[name]["ratio"] = full["peak_mb"] / rows[name]["peak_mb"]
                rows[name]["time_ratio"] = rows[name]["seconds"] / full["seconds"]
                rows[name]["gradient_difference"] = _difference(f"{folder}/full logits.pt", f"{folder}/{name}.pt")
        return rows


def _in_process(chunk: int | None, trained: bool, file: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--case", str(chunk or 0), "yes" if trained else "no", file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"The measurement failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _measure(chunk: int | None, trained: bool, file: str) -> dict[str, float]:
    """Rise of resident memory and time of one forward and backward pass; the gradients go to ``file``."""
    import torch

    torch.manual_seed(0)
    run = _full if chunk is None else lambda *given: _chunked(*given, chunk=chunk)
    run(*_material(torch, 8, 64, 16, trained))  # what the libraries allocate once is not the method's
    hidden, labels, projection = _material(torch, TOKENS, VOCABULARY, HIDDEN, trained)
    before = _reset_peak()
    begun = time.perf_counter()
    loss = run(hidden, labels, projection)
    seconds = time.perf_counter() - begun
    peak = _status("VmHWM") - before
    torch.save({"loss": loss, "hidden": hidden.grad, "weight": projection.weight.grad}, file)
    return {"peak_mb": peak / 1024, "seconds": seconds}


def _material(torch: Any, tokens: int, vocabulary: int, size: int, trained: bool) -> tuple[Any, Any, Any]:
    """Hidden states ``(n, H)`` as a final norm leaves them, labels ``(n,)``, and the projection ``(V, H)``."""
    hidden = torch.randn(tokens, size, requires_grad=True)
    labels = torch.randint(vocabulary, (tokens,))
    projection = torch.nn.Linear(size, vocabulary, bias=False)
    torch.nn.init.normal_(projection.weight, std=0.05)
    projection.weight.requires_grad_(trained)
    return hidden, labels, projection


def _full(hidden: Any, labels: Any, projection: Any) -> float:
    """What ``model(input_ids, labels=labels).loss.backward()`` does behind the last hidden state."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    logits = projection(hidden[None])  # (1, n, V)
    loss = ForCausalLMLoss(logits, None, projection.out_features, shift_labels=labels[None])
    loss.backward()
    return float(loss)


def _chunked(hidden: Any, labels: Any, projection: Any, chunk: int) -> float:
    """The same mean loss through posttrain's head."""
    from posttrain.network.chunked_head import Head, TokenQuery, token_statistics

    loss = -token_statistics(hidden, labels, Head(projection), TokenQuery(chunk))["logps"].mean()
    loss.backward()
    return float(loss)


def _reset_peak() -> int:
    """Forget the highest resident memory so far; returns the present one in kB."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def _status(name: str) -> int:
    """A line of /proc/self/status in kB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(name + ":")).split()[1])


def _difference(first: str, second: str) -> float:
    """Largest difference of any gradient entry, relative to the largest entry of that gradient."""
    import torch

    wanted, found = torch.load(first), torch.load(second)
    worst = abs(wanted["loss"] - found["loss"]) / abs(wanted["loss"])
    relative: Callable[[Any, Any], float] = lambda a, b: float((a - b).abs().max() / a.abs().max())  # noqa: E731  (typed)
    for name in ("hidden", "weight"):
        if (wanted[name] is None) != (found[name] is None):
            return float("inf")
        if wanted[name] is not None:
            worst = max(worst, relative(wanted[name], found[name]))
    return worst


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
