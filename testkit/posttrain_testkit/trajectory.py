"""Stored trajectories: the numbers of a stable method, which a later version of method or core must reproduce.

``trajectory.json`` beside the method's test holds every number of eight steps of the tiny model in float64, with the
method's default options. A correction of numbers is a minor release of the method; ``store`` holds it to that.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version
from posttrain import api
from posttrain.catalogue.methods import load
from posttrain.errors import MethodError
from transformers.utils import logging

from posttrain_testkit.tiny import count_of_a, head_of, tiny_model, tiny_rows, tiny_tokenizer

FILE = "trajectory.json"
#: Largest difference, as a share of the largest number of the series. Far above what another processor changes in
#: float64, far below what a change of a formula does.
TOLERANCE = 1e-6
#: Options of the run. The learning rate is large, so that the eighth step depends on all seven updates before it.
SETTINGS: dict[str, Any] = {
    "batch_size": 4,
    "steps": 8,
    "learning_rate": 5e-3,
    "schedule": "constant",
    "dtype": "float64",
    "seed": 0,
}
#: With two updates per rollout the ratio moves away from 1, so that clipping and the like show.
_ONLINE = {"group_size": 4, "max_new_tokens": 6, "updates_per_rollout": 2}
#: Options, costs, properties of the sampled texts, counts of prompts, rounding of the sampler.
_LEFT_OUT = ("step", "learning_rate", "seconds", "per_second", "memory_mb", "empty_share", "common_share", "repetition")
_LEFT_OUT_FAMILIES = ("sampler_", "prompts_")
_SERIES = ("loss", "grad_norm")
_WRITE = "Write it: posttrain promote NAME --store-trajectory"


def record(folder: Path) -> dict[str, Any]:
    """Train the tiny model with the plugin in ``folder`` and return the file's content.

    ``series`` has the values of each metric by name, step by step, ``loss`` and ``grad_norm`` (before clipping) among
    them.
    """
    method = load(str(folder.resolve()))
    card = method.card
    keywords = SETTINGS | (_ONLINE | {"reward": [count_of_a]} if card.online else {})
    if "teacher" in card.needs and "teacher_model" not in card.defaults:
        keywords["teacher"] = tiny_model(dtype=torch.float64, seed=77)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="posttrain-trajectory-") as place:
        run = api.train(
            method,
            model=tiny_model(head_of(method), torch.float64),
            tokenizer=tiny_tokenizer(),
            data=tiny_rows(method.card),
            output=str(Path(place) / "run"),
            progress="quiet",
            cache="off",
            device="cpu",
            **keywords,
        )
    names = [n for n in run.metrics[0] if not n.endswith(_LEFT_OUT) and not n.startswith(_LEFT_OUT_FAMILIES)]
    # metrics of rollouts are on the lines of the steps that made them
    series = {name: [float(line[name]) for line in run.metrics if name in line] for name in names}
    return {"method": method.name, "version": method.card.version, "series": series}


def difference(folder: Path) -> str | None:
    """Return how the stored numbers and the present ones differ, in one sentence; None where they agree."""
    return _compare(_read(folder / FILE), record(folder))


def store(folder: Path) -> Path:
    """Write the present numbers; return the file.

    Raises MethodError where stored numbers would change and the version is still that of the same minor release.
    """
    file = folder / FILE
    found = record(folder)
    stored = _read(file) if file.is_file() else None
    if stored is not None and (change := _compare(stored, found)):
        old, new = Version(stored["version"]), Version(found["version"])
        if new.release[:2] <= old.release[:2]:
            raise MethodError(
                f"{change} A correction of numbers is a minor release: raise the version of '{found['method']}' above "
                f"{old} in its card, and give the evidence in the changelog."
            )
    file.write_text(_as_text(found), encoding="utf-8")
    return file


def _read(file: Path) -> dict[str, Any]:
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise MethodError(f"{file}: cannot be read ({error.strerror}). {_WRITE}") from None
    except ValueError as error:
        raise MethodError(f"{file}: is not valid JSON: {error}.") from None
    if not isinstance(stored, dict) or not {"method", "version", "series"} <= set(stored):
        raise MethodError(f"{file}: expected method, version and series. {_WRITE}")
    return stored


def _compare(stored: dict[str, Any], found: dict[str, Any]) -> str | None:
    name = found["method"]
    before, now = stored["series"], found["series"]
    for kind, names in (("lost", set(before) - set(now)), ("gained", set(now) - set(before))):
        if names:
            return f"'{name}' has {kind} the metric '{min(names)}' since {stored['version']}."
    for metric in sorted(before, key=lambda one: (one not in _SERIES, one)):
        if len(before[metric]) != len(now[metric]):
            return f"'{name}' has {len(now[metric])} values of {metric}, {FILE} has {len(before[metric])}."
        for step, (old, new) in enumerate(zip(before[metric], now[metric], strict=True), 1):
            if not math.isclose(old, new, rel_tol=TOLERANCE, abs_tol=1e-12) and not (
                math.isnan(old) and math.isnan(new)
            ):
                return f"Step {step} of '{name}': {metric} is {new!r}, it was {old!r} in {stored['version']}."
    return None


def _as_text(found: dict[str, Any]) -> str:
    """Format as JSON with a line a series, so that a difference between two versions can be read."""
    rows = ",\n".join(f"    {json.dumps(name)}: {json.dumps(values)}" for name, values in found["series"].items())
    head = f'  "method": {json.dumps(found["method"])},\n  "version": {json.dumps(found["version"])},\n'
    return "{\n" + head + '  "series": {\n' + rows + "\n  }\n}\n"
