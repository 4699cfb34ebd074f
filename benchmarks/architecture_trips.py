"""What comes out of every family of causal models: greedy answers, what LoRA reaches, and models saved and read again.

Run with ``python benchmarks/architecture_trips.py`` (about ten minutes on one core), or with ``--family gemma2`` for
some.
The tiny models are those of ``architectures.py``, each in its first form. For each family

- greedy answers to prompts of unlike length, sampled together, must be ``model.generate``'s to each alone, or those of
  the model's own forward passes where ``generate`` has others;
- with LoRA's default targets, the share of each kind of weight that lies under an adapter is written down;
- the saved model, and the saved adapter over its base, are read again by transformers and peft alone, and log-probs of
  rows must be those of the model in memory, within 1e-4.

Prints a line a family and writes ``results/architecture_trips.json``, from which ``posttrain sync`` makes a page.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from architectures import HERE, LEFT_OUT, SECONDS, last_line, worst
from line_each import line_each
from tiny_families import NEEDS, build, rows

OUTPUT = HERE / "results" / "architecture_trips.json"
#: Tokens of a greedy answer.
ANSWER = 10
#: Where ``generate`` disagrees with the family's own forward passes, or fails.
FORWARD = "as the model's own forward passes"


@dataclass
class Trips:
    """What was found of one family."""

    name: str
    dtype: str = ""
    packed: bool = False
    shared: bool = False
    greedy: str = ""
    """equal, or why not; empty where nothing was sampled."""
    reach: dict[str, float] = field(default_factory=dict)
    """Share of each kind of weight under an adapter."""
    saved: float | None = None
    """Largest difference of a log-prob (in nats) of the model that was saved and read again."""
    adapter: float | None = None
    """The same of an adapter over its base."""
    line: str = ""
    """Why something was not tried."""


def alone(model: Any) -> Any:
    """Log-probs of all rows by plain transformers, each row through a fresh copy."""
    import torch

    found = []
    with torch.no_grad():
        for sequence in rows():
            logits = copy.deepcopy(model)(input_ids=sequence.ids[None], use_cache=False).logits[0, :-1]
            logps = logits.log_softmax(-1).gather(1, sequence.ids[1:, None])[:, 0]
            found.append(logps[sequence.trained[1:]])
    return torch.cat(found)


def greedy(model: Any, loaded: Any) -> str:
    """Whether answers sampled together are those of ``generate`` to each prompt alone, or else of forward passes."""
    from posttrain.contract.generation import Sampling
    from posttrain.generation.local.hf import HfGenerator

    prompts = [one.ids[:length] for one, length in zip(rows()[:3], (12, 6, 4), strict=True)]
    generator = HfGenerator(loaded.policy.model, loaded.tokenizer, set(), batch_size=4)
    found = [one[0].ids.tolist() for one in generator.generate(prompts, Sampling(ANSWER, greedy=True), [[0]] * 3)]
    try:
        said = (
            f"generate writes {sum(generated(model, p) != one for p, one in zip(prompts, found, strict=True))} others"
        )
    except Exception as error:  # a family's own code
        said = f"generate ends in {type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
    if said == "generate writes 0 others":
        return "equal"
    own = [one == passes(model, prompt) for prompt, one in zip(prompts, found, strict=True)]
    return f"{FORWARD}; {said}" if all(own) else f"{own.count(False)} of {len(own)} answers differ; {said}"


def generated(model: Any, prompt: Any) -> list[int]:
    """The answer of transformers' ``generate``."""
    import torch
    from transformers import GenerationConfig

    fresh = copy.deepcopy(model)
    fresh.generation_config = GenerationConfig()  # some families force an end
    with torch.no_grad():
        whole = fresh.generate(prompt[None], do_sample=False, max_new_tokens=ANSWER, pad_token_id=0)
    return whole[0, len(prompt) :].tolist()


def passes(model: Any, prompt: Any) -> list[int]:
    """The likeliest token behind the whole text, again and again, by forward passes without a cache."""
    import torch

    ids = prompt
    with torch.no_grad():
        for _ in range(ANSWER):
            logits = copy.deepcopy(model)(input_ids=ids[None], use_cache=False).logits[0, -1]
            ids = torch.cat([ids, logits.argmax()[None]])
    return ids[len(prompt) :].tolist()


def read_again(policy: Any, tokenizer: Any, folder: Path, base: Path | None, dtype: str) -> Any:
    """Log-probs of the model as it was saved, by transformers and peft."""
    from posttrain.distributed.single import Single
    from posttrain.models.reload import load_plainly
    from posttrain.models.save import save_model

    save_model(policy, tokenizer, folder, Single())
    experts = getattr(policy.inner.config, "_experts_implementation", None)
    model, _ = load_plainly(folder, dtype, base=None if base is None else str(base), experts=experts)
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    if inner._can_set_attn_implementation():
        inner.set_attn_implementation("eager")  # a family's default kernel may leave out a soft-cap
    return alone(model)


def examine(family: str, folder: Path) -> Trips:
    """Everything of one family."""
    import torch
    from posttrain.errors import PosttrainError
    from posttrain.models.load import load_policy
    from posttrain.models.reach import reach_of
    from posttrain.network.chunked_head import TokenQuery
    from posttrain.settings import Settings
    from posttrain_testkit.tiny import tiny_tokenizer

    result, tokenizer, base = Trips(family), tiny_tokenizer(), folder / "model"
    try:
        model = build(family, NEEDS.get(family, {}), torch.float64)
        model.save_pretrained(base)
        result.dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        settings = Settings(device="cpu", dtype=result.dtype, cache="off", lora_rank=4)
        loaded = load_policy(str(base), tokenizer, settings.model)
        result.packed, result.shared = loaded.policy.packed, loaded.policy.shared
        wanted = alone(model)
        result.saved = worst(read_again(loaded.policy, tokenizer, folder / "whole", None, result.dtype), wanted)
        try:
            result.greedy = greedy(model, loaded)
        except PosttrainError as error:
            result.greedy = str(error)
        except Exception as error:
            result.greedy = last_line(error)
        adapted = load_policy(str(base), tokenizer, settings.replace(lora=True).model).policy
        result.reach = {kind: round(share, 4) for kind, share in sorted(reach_of(adapted.model).items())}
        torch.manual_seed(1)
        with torch.no_grad():
            for weight in adapted.parameters():
                if weight.requires_grad:  # an adapter begins as nothing
                    weight.add_(0.1 * torch.randn_like(weight))
            mine = adapted.eval()(rows(), TokenQuery())["logps"]
        result.adapter = worst(read_again(adapted, tokenizer, folder / "adapter", base, result.dtype), mine)
        if worst(mine, wanted) < 1e-3:
            result.line = "the adapter changes nothing"
    except PosttrainError as error:
        result.line = str(error)
    except Exception as error:
        result.line = last_line(error)
    return result


def examine_families(families: list[str]) -> None:
    """Print a line of JSON a family."""
    warnings.simplefilter("ignore")
    for family in families:
        if family in LEFT_OUT:
            found = Trips(family, line=LEFT_OUT[family])
        else:
            with tempfile.TemporaryDirectory() as place:
                found = examine(family, Path(place))
        print(json.dumps(vars(found)), flush=True)


def in_processes(families: list[str]) -> Iterator[Trips]:
    """The same in a process of its own: a family that crashes or hangs is one line."""
    for family, line in line_each([sys.executable, __file__, "--inside"], families, SECONDS):
        if line:
            yield Trips(**json.loads(line))
        else:
            yield Trips(family, line=f"the process ended, or took more than {SECONDS} seconds")


def main() -> None:
    """Examine families and write down what was found; those that are not tried stay as they are in the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", action="append", help="this one, by its model_type [all]")
    parser.add_argument("--new", action="store_true", help="only those that the file does not have")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--inside", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        examine_families(options.inside)
        return
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as known

    found = json.loads(options.output.read_text(encoding="utf-8"))["families"] if options.output.is_file() else []
    by_name = {one["name"]: one for one in found}
    families = options.family or sorted(known)
    for one in in_processes([name for name in families if not (options.new and name in by_name)]):
        by_name[one.name] = vars(one)
        print(json.dumps(vars(one)), flush=True)
        text = json.dumps({"families": [by_name[name] for name in sorted(by_name)]}, indent=1)
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
