"""``posttrain compare METHOD METHOD ...``: which method or setting does best on these rows."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import Any

from posttrain.catalogue.defaults import shared_options
from posttrain.cli import evaluate
from posttrain.cli.flags import help_text, parse
from posttrain.cli.output import print_json, print_table
from posttrain.errors import SettingsError
from posttrain.settings.options import Option, cast

USAGE = """usage: posttrain compare METHOD[,OPTION=VALUE]... --model MODEL --data ROWS --eval-data ROWS [flags]
       posttrain compare --suggest --model MODEL --data ROWS --eval-data ROWS
       posttrain compare dpo simpo --try learning-rate=1e-6,1e-5 --seeds 3 --output runs/which"""
OWN = [
    Option(name, kind, default, text, "This command")
    for name, kind, default, text in (
        ("suggest", bool, False, "Try the methods that suit the rows."),
        ("try", list[str], None, "OPTION=A,B,C: every value; OPTION=LOW..HIGH: drawn from. May be repeated."),
        ("draws", int, 0, "How often settings are drawn from ranges."),
        ("seeds", int, 3, "Runs of each candidate, each with a seed of its own."),
        ("parallel", int, 1, "Trials at one time; they share processors and GPUs evenly."),
        ("address", str, None, "Ray cluster to run on, auto for that of this machine [a new one here]."),
        ("metric", str, None, "Figure of the evaluation to rank by. [reward, accuracy or loss]"),
        ("halving", bool, False, "End trials that do worst after a ninth and a third of the steps."),
        ("evaluate", list[str], None, "Flag of posttrain evaluate: --evaluate samples=4. May be repeated."),
        ("json", bool, False, "Print JSON."),
        ("help", bool, False, "Print this and stop."),
    )
]
#: Shared options that each trial sets itself.
_PER_TRIAL = ("seed", "output", "overwrite", "progress", "save_total")


def run(arguments: list[str]) -> int:
    """Print the ranking; SettingsError for candidates that could not start."""
    words = ["--help" if word == "-h" else word for word in arguments]
    shared = [option for option in shared_options() if option.name not in _PER_TRIAL]
    output = next(option for option in shared_options() if option.name == "output")
    names, flags = parse(words, [*OWN, output, *shared], "compare")
    own = {o.name: cast(o.name, flags.pop(o.name), o.kind) for o in OWN if o.name in flags}
    if own.pop("help", False):
        print(USAGE + help_text([*OWN, output], {}) + "\nand every option of a run: posttrain train METHOD --help")
        return 0
    folder = Path(flags.pop("output", None) or f"runs/compare-{datetime.datetime.now():%Y%m%d-%H%M%S}")
    if not flags.get("eval_data"):
        raise SettingsError("A comparison is made on held-out rows. Name them: --eval-data FILE")
    for name in ("seeds", "parallel"):
        if own.get(name, 1) < 1:
            raise SettingsError(f"{name} is {own[name]}, expected at least 1.")
    candidates = _candidates(names, own, flags)
    say = (lambda line: None) if own.get("json") else (lambda line: print(line, file=sys.stderr))
    say(f"{len(candidates)} candidates, {own.get('seeds', 3)} seeds each: {folder}")
    from posttrain.evaluation.compare import compare_candidates

    steps = cast("steps", flags.get("steps"), int | None) if "steps" in flags else None
    found = compare_candidates(
        candidates,
        _flags(flags, {option.name for option in shared} - {"eval_data"}),
        _measuring(flags, own.get("evaluate") or []),
        folder,
        steps=steps,
        say=say,
        **{name: own[name] for name in ("seeds", "parallel", "address", "metric", "halving") if name in own},
    )
    if own.get("json"):
        print_json(found.as_data())
    else:
        _print(found, folder)
    return 0


def _candidates(names: list[str], own: dict[str, Any], flags: dict[str, Any]) -> list[Any]:
    from posttrain.cli.imports import load_api

    load_api()
    from posttrain.evaluation.candidates import read_candidates, widened
    from posttrain.evaluation.compare import check_candidates, suggest
    from posttrain.settings import DataSettings

    candidates = read_candidates(names)
    if own.get("suggest"):
        kinds = {option.name: option.kind for option in shared_options()}
        read = {n: cast(n, flags[n], kinds[n]) for n in ("columns", "split", "limit") if n in flags}
        candidates += suggest(flags.get("data") or [], DataSettings(**read))
    if not candidates:
        raise SettingsError("No method was given. Name some, or have them suggested: posttrain compare --suggest ...")
    candidates = widened(candidates, own.get("try") or [], own.get("draws", 0), 0)
    check_candidates(candidates, flags)
    return candidates


def _flags(flags: dict[str, Any], wanted: set[str]) -> list[str]:
    """Return the flags among ``wanted`` as words."""
    words = []
    for name, value in flags.items():
        flag = "--" + name.replace("_", "-")
        if name not in wanted:
            continue
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [f"{flag}={one}" for one in (value if isinstance(value, list) else [value])]
    return words


def _measuring(flags: dict[str, Any], more: list[str]) -> list[str]:
    """Return the flags of the evaluations: the run's flags about rows and scoring, and the held-out rows."""
    wanted = set(evaluate.SHARED) - {"data", "limit", "temperature"}
    return [*_flags(flags, wanted), *_flags({"data": flags["eval_data"]}, {"data"}), *(f"--{text}" for text in more)]


def _print(found: Any, folder: Path) -> None:
    headings = ["candidate", found.metric, "95 % over seeds", "seconds", "behind the best", "95 % interval", "p"]
    rows = []
    for one in found.ranked:
        row = [one.candidate.name, f"{one.score.mean:.4g}", f"{one.score.low:.4g} to {one.score.high:.4g}"]
        row.append(f"{one.seconds:.3g}")
        if one.behind is None:
            rows.append([*row, "", "", ""])
            continue
        gap = one.behind.difference
        rows.append([*row, f"{gap.mean:.4g}", f"{gap.low:.4g} to {gap.high:.4g}", f"{one.behind.p_value:.3g}"])
    print_table(headings, rows)
    for what, step in found.ended.items():
        print(f"{what}: ended after step {step}, it did worse than others")
    for what, reason in found.failed.items():
        print(f"{what}: {reason}")
    print(f"\n{folder / 'compare.html'}")
