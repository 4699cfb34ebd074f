"""Models that posttrain and TRL have trained, on rows that neither has seen: ``python benchmarks/parity/held_out.py``.

SmolLM2-135M, all of its weights in float32, is trained for 100 steps by each side, on the same rows in the same order
with equal hyper-parameters, three times with other rows (a seed). One function, in plain transformers, then measures
both models on the same held-out rows. The builders are those of ``run.py``, and so are the settings in README.md.

Criterion, stated before anything was measured. For the first figure of each method:

1. the mean over our seeds lies in the peer's 95 % interval over its seeds, mean +/- t s / sqrt(n);
2. ours and theirs of one seed differ by at most ``CLOSE`` of the way that the peer's mean went in training.

Seeds count that both sides have finished; two are the fewest, whose t is 12.7 in place of 4.3, and the page says how
many there were. A figure that went no further than half the peer's interval has not moved, which makes both empty: it
does not pass either. The share of pairs in order and the reward of greedy answers are shown beside it: they go in steps
of one row, so that seeds may agree by chance and leave an interval of no width.

Every run is written to the results as soon as it is measured, and none is done twice: stop it, and the same command
goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import held_out_rows as rows
import material
import run

METHODS = {
    "kto": "kto",
    "simpo": "simpo",
    "orpo": "orpo",
    "gkd": "gkd, data",
    "gold": "gold",
    "dapo": "dapo, 2 updates",
}
"""Method -> its case: gkd and gold learn from the data's answers, dapo from those of a file, which both sides read."""
FIGURES = {
    **dict.fromkeys(("kto", "simpo", "orpo"), ("margin", "accuracy")),
    **dict.fromkeys(("gkd", "gold"), ("nll", "accuracy")),
    "dapo": ("weighted log-prob", "reward"),
}
"""Method -> its figures; the first is the one of the criterion.

margin: mean of log p(right answer) - log p(wrong one), summed over tokens. accuracy: share of sums whose right answer
is the likelier. nll: mean of -log p over the tokens of the right answers. weighted log-prob: mean over answers of
advantage times log-prob of a token, with advantages as dapo's, of answers that are written, not sampled. reward: mean
of greedy answers to the same prompts.
"""
CLOSE = 0.05
QUANTILE = {2: 12.706204736, 3: 4.302652730}
"""Student's t at 0.975, by the number of seeds."""
RESULTS = run.HERE.parent / "results" / "held_out.json"
MODEL = Path("~/.cache/posttrain/smollm2-135m").expanduser()


def main() -> int:
    """Run what is missing, print the table. Returns 1 if a method does not meet the criterion."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, choices=rows.SEEDS, default=list(rows.SEEDS))
    parser.add_argument("--peer-python", help=f"interpreter that has TRL {run.PEERS[False]} [made when absent]")
    parser.add_argument("--model", default=str(MODEL), help="transformers folder of SmolLM2-135M-Instruct")
    parser.add_argument("--work", help="folder for rows and models [benchmarks/.held-out]")
    parser.add_argument("--steps", type=int, default=rows.STEPS, help="fewer, to try it out")
    parser.add_argument("--output", default=str(RESULTS))
    told = parser.parse_args()
    work = Path(told.work or run.HERE.parent / ".held-out").resolve()
    work.mkdir(parents=True, exist_ok=True)
    pythons = {"ours": sys.executable, "theirs": told.peer_python or run._peer_python(False)}
    results = Results(Path(told.output), {"steps": told.steps, "learning_rate": rows.LEARNING_RATE})
    rows.write_models(work, told.model)
    for method in told.methods:
        if method not in results.untrained:
            results.set_untrained(method, measure(method, work / "model"))
        for seed in told.seeds:
            folder = rows.write_rows(work, seed)
            for side in ("ours", "theirs"):
                if not results.has(method, seed, side):
                    results.add(one_run(method, seed, side, pythons[side], folder, told.steps))
    print(results.table())
    return int(any(not one["passes"] for one in results.summaries().values()))


class Results:
    """The file of results: figures of every run, and what they say of each method."""

    def __init__(self, file: Path, facts: dict[str, Any]):
        self.file, self.facts = file, facts
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if found and found["facts"] != facts:
            raise SystemExit(f"{file} has runs with {found['facts']}, not {facts}. Name another file with --output.")
        self.untrained: dict[str, dict[str, float]] = found.get("untrained", {})
        self.runs: list[dict[str, Any]] = found.get("runs", [])

    def has(self, method: str, seed: int, side: str) -> bool:
        """Whether it was run."""
        return any((one["method"], one["seed"], one["side"]) == (method, seed, side) for one in self.runs)

    def add(self, found: dict[str, Any]) -> None:
        """Keep a run."""
        self.runs.append(found)
        self._write()

    def set_untrained(self, method: str, figures: dict[str, float]) -> None:
        """Keep the figures of the model before training."""
        self.untrained[method] = figures
        self._write()

    def summaries(self) -> dict[str, dict[str, Any]]:
        """Method -> what its runs say, of the seeds that both sides have finished, where those are two or more."""
        found = {}
        for method in METHODS:
            mine = {(one["side"], one["seed"]): one for one in self.runs if one["method"] == method}
            seeds = [seed for seed in rows.SEEDS if ("ours", seed) in mine and ("theirs", seed) in mine]
            if len(seeds) in QUANTILE:
                figure = FIGURES[method][0]
                series = [[mine[side, seed]["figures"][figure] for seed in seeds] for side in ("ours", "theirs")]
                same = all(mine["ours", seed]["ids"] == mine["theirs", seed]["ids"] for seed in seeds)
                facts = {"figure": figure, "seeds": len(seeds), "same_ids": same}
                one = facts | judge(*series, self.untrained[method][figure])
                found[method] = one | {"passes": same and one["passes"]}
        return found

    def table(self) -> str:
        """A line for each method and each of its figures."""
        found, lines = self.summaries(), []
        for method in METHODS:
            if method not in found:
                done = sum(one["method"] == method for one in self.runs)
                lines.append(f"{method:<6} not measured: {done} of {2 * len(rows.SEEDS)} runs")
                continue
            one = found[method]
            lines.append(
                f"{method:<6} {one['seeds']} seeds, {one['figure']}: "
                f"untrained {one['untrained']:.4f}, ours {one['ours']:.5f}, "
                f"TRL {one['theirs']:.5f} [{one['low']:.5f}, {one['high']:.5f}], a seed's difference at most "
                f"{one['difference']:.2%} of the way: {'passes' if one['passes'] else 'FAILS'}"
            )
            second = FIGURES[method][1]
            for side in ("ours", "theirs"):
                each = [run["figures"][second] for run in self.runs if (run["method"], run["side"]) == (method, side)]
                lines.append(f"       {second}, {side}: {self.untrained[method][second]:.4f} -> {each}")
        return "\n".join(lines)

    def _write(self) -> None:
        content = {
            "facts": self.facts,
            "close": CLOSE,
            "untrained": self.untrained,
            "methods": self.summaries(),
            "runs": self.runs,
        }
        self.file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def judge(ours: list[float], theirs: list[float], untrained: float) -> dict[str, Any]:
    """Apply the criterion above to one figure of each seed, in the same order on both sides."""
    peer, mean = statistics.mean(theirs), statistics.mean(ours)
    half = QUANTILE[len(theirs)] * statistics.stdev(theirs) / math.sqrt(len(theirs))
    way = abs(peer - untrained)
    far = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    difference = far / way if way else math.inf
    moved = way > half
    return {
        "ours": mean,
        "theirs": peer,
        "low": peer - half,
        "high": peer + half,
        "untrained": untrained,
        "difference": difference,
        "moved": moved,
        "passes": moved and abs(mean - peer) <= half and difference <= CLOSE,
    }


def one_run(method: str, seed: int, side: str, python: str, folder: Path, steps: int) -> dict[str, Any]:
    """Train in a process of its own, measure, and leave nothing but the figures."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        options = ["--save", str(place / "model"), "--steps", str(steps), "--learning-rate", str(rows.LEARNING_RATE)]
        script = str(run.HERE / f"{side}.py")
        run._call([python, script, str(folder), METHODS[method], str(place / "series.json"), *options, "--fused"])
        trained = time.perf_counter() - begun
        series = json.loads((place / "series.json").read_text(encoding="utf-8"))
        figures = measure(method, place / "model")
        shutil.rmtree(place / "model")
    found = {
        "method": method,
        "seed": seed,
        "side": side,
        "figures": figures,
        "last_loss": series["steps"][-1]["loss"],
        "ids": run.fingerprint(series["ids"]),
        "seconds": round(trained, 1),
        "versions": run._versions(python, {"ours": "posttrain", "theirs": "trl"}[side]),
    }
    print(json.dumps(found), flush=True)
    return found


def measure(method: str, folder: Path) -> dict[str, float]:
    """The figures of the model in ``folder``, in float32, with nothing but transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return _groups(model, tokenizer) if method == "dapo" else _pairs(model, tokenizer, method)


def _pairs(model: Any, tokenizer: Any, method: str) -> dict[str, float]:
    held_out = rows.pairs(None)
    right, wrong = (
        log_probs(model, tokenizer, [(row["prompt"], row[role]) for row in held_out]) for role in ("chosen", "rejected")
    )
    margins = [sum(a) - sum(b) for a, b in zip(right, wrong, strict=True)]
    tokens = [one for row in right for one in row]
    found = {
        "margin": statistics.mean(margins),
        "accuracy": statistics.mean(margin > 0 for margin in margins),
        "nll": -statistics.mean(tokens),
    }
    return {name: found[name] for name in FIGURES[method]}


def _groups(model: Any, tokenizer: Any) -> dict[str, float]:
    held_out = rows.groups(None)
    scores = log_probs(model, tokenizer, [(prompt, answer) for prompt, answers in held_out for answer in answers])
    weights = [weight for _, answers in held_out for weight in _advantages([material.reward(one) for one in answers])]
    greedy = [material.reward(text) for text in greedy_answers(model, tokenizer, [prompt for prompt, _ in held_out])]
    weighted = [weight * statistics.mean(row) for weight, row in zip(weights, scores, strict=True)]
    return {"weighted log-prob": statistics.mean(weighted), "reward": statistics.mean(greedy)}


def _advantages(rewards: list[float]) -> list[float]:
    mean, deviation = statistics.mean(rewards), statistics.stdev(rewards)
    return [(one - mean) / deviation for one in rewards]


def log_probs(model: Any, tokenizer: Any, texts: list[tuple[str, str]]) -> list[list[float]]:
    """Log-probs of each answer's tokens after its prompt, the stop token's the last; prompts and answers as texts."""
    import torch

    found = []
    for place in range(0, len(texts), 16):
        prompts = [tokenizer(prompt)["input_ids"] for prompt, _ in texts[place : place + 16]]
        answers = [rows.encoded(tokenizer, answer) for _, answer in texts[place : place + 16]]
        ids = [torch.tensor(prompt + answer) for prompt, answer in zip(prompts, answers, strict=True)]
        batch = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)  # (R, T)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(one) for one in ids], batch_first=True)
        logps = model(batch, attention_mask=mask).logits.log_softmax(-1)  # (R, T, V)
        taken = logps[:, :-1].gather(2, batch[:, 1:, None])[..., 0]  # (R, T - 1)
        for row, prompt, answer in zip(taken, prompts, answers, strict=True):
            found.append(row[len(prompt) - 1 : len(prompt) + len(answer) - 1].tolist())
    return found


def greedy_answers(model: Any, tokenizer: Any, prompts: list[str]) -> list[str]:
    """The likeliest tokens one by one, up to the stop token or the longest completion of the runs."""
    given = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    ids = model.generate(**given, do_sample=False, max_new_tokens=material.LONGEST)[:, given["input_ids"].shape[1] :]
    return list(tokenizer.batch_decode(ids, skip_special_tokens=True))


if __name__ == "__main__":
    sys.exit(main())
