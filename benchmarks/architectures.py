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

from line_each import line_each
from tiny_families import build, forms, rows

HERE = Path(__file__).resolve().parent
#: Largest difference of a log-prob (in nats), and of a gradient relative to the largest entry of all.
TOLERANCE = 1e-4
SECONDS = 240

#: Largest difference of a gradient in bfloat16, whose numbers have eight bits.
ROUNDED = 2e-2


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
    command = [sys.executable, __file__, "--dtype", dtype, "--inside"]
    for family, line in line_each(command, families, SECONDS):
        if line:
            yield from (Result(**facts) for facts in json.loads(line))
        else:
            yield Result(family, kind="traceback", line=f"the process ended, or took more than {SECONDS} seconds")


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
