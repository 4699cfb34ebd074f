"""``posttrain evaluate MODEL``: measure a model or the result of a run, alone or against another."""

from __future__ import annotations

import sys
from typing import Any

from posttrain.catalogue.defaults import shared_options
from posttrain.cli.flags import help_text, parse
from posttrain.cli.output import print_json, print_table
from posttrain.errors import SettingsError
from posttrain.settings.options import Option, cast

USAGE = """usage: posttrain evaluate MODEL --data ROWS --reward NAME [flags]    answers, scored
       posttrain evaluate MODEL --data ROWS                         texts: perplexity; pairs: accuracy
       posttrain evaluate RUN [--against MODEL]                     a run's held-out rows, its rewards
       posttrain evaluate MODEL --suite TASK                        tasks of lm-evaluation-harness"""
#: Options of a run about rows, and how answers are made and scored.
SHARED = (
    *("data", "columns", "split", "limit", "max_length", "max_new_tokens", "truncation", "train_on", "seed"),
    *("system_prompt", "chat_template", "chat_template_kwargs", "chat", "reward", "reward_options", "judge"),
    *("judge_options", "environment", "environment_options", "tools", "max_turns", "top_p", "top_k", "stop"),
    *("generation", "generation_batch_size", "generation_dtype", "dtype", "device", "quantize", "trust_remote_code"),
    *("cache", "attention", "packing"),
)
OWN = [
    Option(name, kind, default, text, "This command")
    for name, kind, default, text in (
        ("against", str, None, "A second model, which answers the same prompts."),
        ("samples", int, 1, "Answers to each prompt."),
        ("temperature", float, 0.0, "0 takes the likeliest answer; with several samples 1."),
        ("k", list[str], None, "Tell pass@k for these k: --k 1,4,8"),
        ("right_at", float, None, "Reward from which on an answer is right. [1 where all rewards are 0 or 1]"),
        ("suite", list[str], None, "Tasks of lm-evaluation-harness, by name or as YAML files."),
        ("output", str, None, "Folder for the figures, all samples and a page."),
        ("json", bool, False, "Print JSON."),
        ("help", bool, False, "Print this and stop."),
    )
]


def run(arguments: list[str]) -> int:
    """Print the figures; SettingsError for what cannot be measured."""
    words = ["--help" if word == "-h" else word for word in arguments]
    shared = [option for option in shared_options() if option.name in SHARED]
    models, flags = parse(words, [*OWN, *shared], "evaluate")
    own = {
        option.name: cast(option.name, flags.pop(option.name), option.kind) for option in OWN if option.name in flags
    }
    if own.pop("help", False):
        print(USAGE + help_text([*OWN, *shared], {}))
        return 0
    if len(models) != 1:
        said = "No model was given." if not models else f"{len(models)} models were given; the second is --against."
        raise SettingsError(f"{said} Write: posttrain evaluate MODEL --data FILE")
    kinds = {option.name: option.kind for option in shared}
    given = {name: cast(name, value, kinds[name]) for name, value in flags.items()}
    output, as_json = own.pop("output", None), own.pop("json", False)
    if "k" in own:
        own["k"] = [_whole(text) for one in own["k"] for text in one.split(",")]
    from posttrain.cli.imports import load_api

    say = (lambda line: None) if as_json else (lambda line: print(line, file=sys.stderr))
    found = load_api().evaluate(models[0], say=say, **own, **given)
    if output:
        found.save(output)
    if as_json:
        print_json(found.as_data())
    else:
        _print(found)
        if output:
            print(f"\n{output}: figures, samples and a page")
    return 0


def _whole(text: str) -> int:
    if not text.strip().isdigit():
        raise SettingsError(f"Flag '--k' is '{text}', expected whole numbers: --k 1,4,8")
    return int(text)


def _print(found: Any) -> None:
    for name, one in found.sets.items():
        other, compared = found.others.get(name), found.comparisons.get(name, {})
        print(f"\n{name or 'data'}: {one.rows} rows")
        headings = ["figure", "mean", "95 % interval"]
        if other is not None:
            headings += ["against", "difference", "95 % interval", "p", "won, tied, lost"]
        rows = []
        for figure, value in one.figures.items():
            row = [figure, f"{value.mean:.4g}", f"{value.low:.4g} to {value.high:.4g}"]
            rows.append([*row, *_beside(figure, other, compared)] if other is not None else row)
        if "preferred" in compared:
            c = compared["preferred"]
            share = [(value + 1) / 2 for value in (c.difference.mean, c.difference.low, c.difference.high)]
            row = ["preferred", f"{share[0]:.4g}", f"{share[1]:.4g} to {share[2]:.4g}", "", "", ""]
            rows.append([*row, f"{c.p_value:.3g}", f"{c.wins}, {c.ties}, {c.losses}"])
        print_table(headings, rows)
        for note in one.notes:
            print(f"  {note}")


def _beside(figure: str, other: Any, compared: dict[str, Any]) -> list[str]:
    mean = f"{other.figures[figure].mean:.4g}" if figure in other.figures else ""
    if figure not in compared:
        return [mean, "", "", "", ""]
    c = compared[figure]
    gap = c.difference
    wide = f"{gap.low:.4g} to {gap.high:.4g}"
    return [mean, f"{gap.mean:.4g}", wide, f"{c.p_value:.3g}", f"{c.wins}, {c.ties}, {c.losses}"]
