"""What promotion to stable asks of each candidate: ``python -m benchmarks.promotions [METHOD ...]``.

Trains every candidate under every strategy, writes ``evidence.toml`` beside its test and asks ``posttrain promote`` for
all criteria; the table is kept in ``benchmarks/results/promotions.json``, of which ``posttrain sync`` makes a page.

A strategy of its own, qlora, quantises the base. So that all five can give one number, every run trains an adapter on
the same base, whose matrices are rounded to what four bits can hold: quantising them once more changes nothing.

The figure of a peer is the loss series that ``benchmarks/parity`` compares with TRL's, with the bound stated there. The
figure on held-out rows is that of ``benchmarks/parity/held_out.py``, for methods that it has measured.

``--again`` trains nothing: strategies keep the losses that ``evidence.toml`` has, and the conformance kit and the
trajectory, which have tests of their own, what the table says of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CANDIDATES = ("kto", "gold", "sdpo", "sdft", "gkd", "simpo", "orpo", "dapo")
#: Strategy -> options that it has of its own.
ALONE: dict[str, dict[str, Any]] = {"single": {}, "qlora": {"quantize": "nf4", "double_quantization": False}}
SPREAD: dict[str, dict[str, Any]] = {"ddp": {}, "fsdp": {}, "deepspeed": {"zero_stage": 2}}
#: SGD: Adam would make steps of a gradient that is rounding alone.
COMMON: dict[str, Any] = {
    "batch_size": 4,
    "steps": 4,
    "learning_rate": 0.05,
    "schedule": "constant",
    "optimizer": "sgd",
    "lora": True,
    "lora_rank": 4,
    "cache": "off",
    "progress": "quiet",
    "device": "cpu",
    "verify_saved": False,
}


def losses(methods: list[str], strategies: dict[str, dict[str, Any]], base: str, folder: Path) -> dict[str, Any]:
    """The last loss of each method under each strategy, by both names; the error where there is none."""
    from posttrain import api
    from posttrain.catalogue.methods import load
    from posttrain.errors import PosttrainError
    from posttrain_testkit.tiny import count_of_a, tiny_model, tiny_rows

    found: dict[str, Any] = {}
    for name in methods:
        card = load(str(_folder(name))).card
        given: dict[str, Any] = {"model": base, "data": tiny_rows(card)}
        if card.online:
            given |= {"group_size": 4, "max_new_tokens": 6}
        if "rewards" in card.needs:
            given["reward"] = count_of_a
        for strategy, own in strategies.items():
            if "teacher" in card.needs and "teacher_model" not in card.defaults:
                given["teacher"] = tiny_model(seed=77)  # each time a new one: a strategy spreads it
            output = str(folder / f"{name}-{strategy}")
            try:
                run = api.train(name, strategy=strategy, output=output, **COMMON, **given, **own)
                found[f"{name}/{strategy}"] = [line["loss"] for line in run.metrics]
            except PosttrainError as error:
                found[f"{name}/{strategy}"] = str(error)
    return found


def write_base(folder: Path) -> None:
    """The tiny model with matrices that four bits hold exactly, and its tokenizer."""
    import bitsandbytes.functional as four_bits
    import torch
    from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

    model = tiny_model()
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
                packed, state = four_bits.quantize_4bit(module.weight.data, quant_type="nf4")
                module.weight.copy_(four_bits.dequantize_4bit(packed, state))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def measure(methods: list[str]) -> dict[str, Any]:
    """All losses: those of one process here, the others in one start of two processes."""
    with tempfile.TemporaryDirectory(prefix="posttrain-promotions-") as place:
        folder = Path(place)
        write_base(folder / "base")
        found = losses(methods, ALONE, str(folder / "base"), folder)
        words = ["--worker", str(folder), *methods]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
        done = subprocess.run(
            [*command, *words], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        return found | json.loads((folder / "found.json").read_text(encoding="utf-8"))


def _worker(folder: Path, methods: list[str]) -> None:
    import torch.distributed as dist

    found = losses(methods, SPREAD, str(folder / "base"), folder)
    if dist.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def _folder(name: str) -> Path:
    return next(ROOT / tier / name for tier in ("plugins", "contrib") if (ROOT / tier / name).is_dir())


def evidence(name: str, found: dict[str, Any]) -> str:
    """The file that promotion reads."""
    from posttrain.catalogue.cards import read_card
    from posttrain.catalogue.defaults import method_options

    parity = json.loads((RESULTS / "parity.json").read_text(encoding="utf-8"))
    cases = [one for one in parity["cases"] if one["case"].partition(",")[0] == name]
    (path,) = _folder(name).glob("*/method.toml")
    options = {one.name: one.default for one in method_options(read_card(path)) if one.default is not None}
    lines = [
        "[result]  # largest relative difference of loss and gradient norm from TRL 1.16.0's, over eight steps",
        'source = "benchmarks/results/parity.json"',
        "expected = 0.0",
        f"measured = {max(one['largest'] for one in cases):.2e}" if cases else "",
        f"tolerance = {parity['bound']}",
        f'command = "python benchmarks/parity/run.py --methods {name}"',
        "",
        *_held_out(name),
        f"[strategies]  # the loss of step {COMMON['steps']}: python -m benchmarks.promotions {name}",
        *(
            f"{strategy} = {found[f'{name}/{strategy}'][-1]!r}"
            for strategy in (*ALONE, *SPREAD)
            if isinstance(found[f"{name}/{strategy}"], list)
        ),
        "",
        "[release]",
        'version = "0.1.0"',
        f"options = {{ {', '.join(f'{key} = {json.dumps(value)}' for key, value in options.items())} }}",
    ]
    return "\n".join(lines) + "\n"


def _held_out(name: str) -> list[str]:
    """The section on held-out rows; nothing where it was not measured."""
    results = _held_out_results()
    found = results["methods"].get(name)
    if found is None:
        return []
    if not found["same_ids"]:
        raise SystemExit(f"held_out.json: ours and theirs of {name} read other tokens. Measure it again.")
    return [
        "[held_out]  # SmolLM2-135M trained by TRL 1.16.0 and here on the same rows, with several seeds",
        'source = "benchmarks/results/held_out.json"',
        f'figure = "{found["figure"]}"',
        f"seeds = {found['seeds']}",
        f"untrained = {found['untrained']:.6g}",
        f"measured = {found['ours']:.6g}  # mean over our seeds",
        f"low = {found['low']:.6g}",
        f"high = {found['high']:.6g}",
        f"difference = {found['difference']:.2e}  # largest of a seed, as a share of the peer's way from untrained",
        f"tolerance = {results['close']}",
        f'command = "python benchmarks/parity/held_out.py --methods {name}"',
        "",
    ]


def _held_out_results() -> dict[str, Any]:
    file = RESULTS / "held_out.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"methods": {}}


def recorded(methods: list[str]) -> dict[str, Any]:
    """The losses that ``evidence.toml`` has, in the form of ``measure``."""
    found: dict[str, Any] = {}
    for name in methods:
        losses = tomllib.loads((_folder(name) / "evidence.toml").read_text(encoding="utf-8"))["strategies"]
        found |= {f"{name}/{strategy}": [loss] for strategy, loss in losses.items()}
    absent = [f"{name}/{strategy}" for name in methods for strategy in (*ALONE, *SPREAD)]
    return dict.fromkeys(absent, "not measured") | found


def _asked(name: str, before: dict[str, Any] | None) -> dict[str, Any]:
    """The row of a method in the table; ``before``: the one that says how kit and trajectory did, None to run them."""
    from posttrain.authoring.promote import criteria

    if before is None:
        command = [sys.executable, "-m", "posttrain", "promote", name, "--dry-run", "--json"]
        return json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout)
    said = {one["name"]: one for one in before["criteria"]}
    kit, trajectory = said["conformance kit"]["met"], said["trajectory"]
    found = criteria(_folder(name), lambda _: kit, lambda _: None if trajectory["met"] else trajectory["detail"])
    return {"method": name, "met": all(one.met for one in found), "criteria": [vars(one) for one in found]}


def main() -> None:
    """Measure, write the evidence, ask for the criteria, keep the table."""
    if sys.argv[1:2] == ["--worker"]:
        _worker(Path(sys.argv[2]), sys.argv[3:])
        return
    methods = [word for word in sys.argv[1:] if word != "--again"] or list(CANDIDATES)
    again = "--again" in sys.argv
    found = recorded(methods) if again else measure(methods)
    file = RESULTS / "promotions.json"
    rows = {one["method"]: one for one in json.loads(file.read_text(encoding="utf-8"))} if file.is_file() else {}
    for name in methods:
        (_folder(name) / "evidence.toml").write_text(evidence(name, found), encoding="utf-8")
        rows[name] = _asked(name, rows[name] if again else None)
        errors = {key: value for key, value in found.items() if key.startswith(f"{name}/") and isinstance(value, str)}
        print(name, *(f"{one['name']}: {one['detail']}" for one in rows[name]["criteria"]), errors or "", sep="\n  ")
        kept = [rows[one] for one in CANDIDATES if one in rows]
        file.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
