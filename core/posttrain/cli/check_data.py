"""``posttrain check-data``: read data as a run would, before any model is loaded."""

from __future__ import annotations

import sys
from typing import Any

from posttrain.assembly.config import resolve
from posttrain.catalogue.cards import SCHEMAS, Card
from posttrain.catalogue.defaults import shared_options
from posttrain.catalogue.discovery import locate
from posttrain.cli.flags import help_text, parse
from posttrain.cli.output import print_json, print_plan
from posttrain.errors import SettingsError
from posttrain.runs.checkpoints import model_in
from posttrain.settings import DataSettings, ModelSettings, Settings
from posttrain.settings.options import Option

#: Settings that affect how rows are read and cut.
_SHARED = ("model", "columns", "split", "max_length", "truncation", "end_of_sequence", "train_on", "chat_template")
_MORE = ("chat_template_kwargs", "learn_scaffold", "max_lost", "limit", "system_prompt", "exhausted")
_HELD_OUT = ("eval_data", "eval_fraction", "seed")
_OTHER = ("trust_remote_code", "streaming")
OWN = [
    Option(name, kind, default, text, "This command")
    for name, kind, default, text in (
        ("method", str, None, "Check for this method: its schemas and defaults."),
        ("schema", str, None, f"Check for this schema: {', '.join(SCHEMAS)}. [any]"),
        (
            "show",
            int,
            None,
            "Print the tokens of the first N examples, those that are learnt marked; with --json their text, ids and "
            "learnt spans. Needs a model.",
        ),
        ("json", bool, False, "Print JSON."),
        ("help", bool, False, "Print this and stop."),
    )
]


def run(arguments: list[str]) -> int:
    """Print a report on the data; DataError names the first row that does not fit."""
    words = ["--help" if word == "-h" else word for word in arguments]
    shared = [option for option in shared_options() if option.name in _SHARED + _MORE + _OTHER + _HELD_OUT]
    data, flags = parse(words, [*OWN, *shared], "check-data")
    own = {option.name: flags.pop(option.name) for option in OWN if option.name in flags}
    if own.get("help"):
        print("usage: posttrain check-data DATA... [flags]" + help_text([*OWN, *shared], {}))
        return 0
    if not data:
        raise SettingsError("No data were given. Write: posttrain check-data FILE... [--method METHOD]")
    schemas, settings = _wanted(own, flags)
    shown = _count(own.get("show"))
    if shown and not settings.model.model:
        raise SettingsError("Tokens need a tokenizer. Name the model: --show 3 --model MODEL")
    report, prepared, tokenizer = _check(data, schemas, settings.data, settings.model)
    if settings.data.eval_data or settings.data.eval_fraction:
        report |= _held_out(data, schemas, settings.data)
    if own.get("json"):
        from posttrain.data import examples_as_data

        print_json(report | ({"examples": examples_as_data(prepared, tokenizer, shown)} if shown and prepared else {}))
    else:
        print_plan(report)
        if shown and prepared is not None:
            from posttrain.data import show

            print(f"\n{show(prepared, tokenizer, shown, colour=sys.stdout.isatty())}")
    return 0


def _held_out(data: list[str], schemas: tuple[str, ...], settings: DataSettings) -> dict[str, Any]:
    """Count the held-out rows of each set, and those of them that are trained on too."""
    from posttrain.assembly.held_out import compare_sets, read_sets

    rows, sets = read_sets(data, settings.eval_data, schemas, settings)
    found, _ = compare_sets(rows, sets)
    return {"held_out": {name or "eval": {"rows": len(some), **found.get(name, {})} for name, some in sets.items()}}


def _wanted(own: dict[str, Any], flags: dict[str, Any]) -> tuple[tuple[str, ...], Settings]:
    if "method" in own and "schema" in own:
        raise SettingsError("Give --method or --schema, not both: a method has its schemas.")
    if "method" in own:
        card = locate(own["method"]).card
        assert card is not None  # locate() raises for a row without a card
    else:
        schema = own.get("schema")
        if schema is not None and schema not in SCHEMAS:
            raise SettingsError(f"Schema '{schema}' is unknown. Schemas: {', '.join(SCHEMAS)}")
        card = Card("any", "0", "experimental", "", (schema,) if schema else SCHEMAS)
    settings, _ = resolve(card, [], {}, flags)
    if settings.model.model:
        settings = settings.replace(model=model_in(settings.model.model))
    return card.schemas, settings


def _count(text: str | None) -> int:
    if text is None:
        return 0
    if not text.isdigit():
        raise SettingsError(f"Flag '--show' is '{text}', expected a whole number.")
    return int(text)


def _check(
    data: list[str], schemas: tuple[str, ...], rows: DataSettings, settings: ModelSettings
) -> tuple[dict[str, Any], Any, Any]:
    """Return the report, the prepared rows and their tokenizer; None for the last two without a model."""
    from posttrain.data import check_data

    if not settings.model:
        return *check_data(data, schemas, rows), None
    from posttrain.data.tokens.notes import within_positions
    from posttrain.models.load import load_tokenizer, stop_ids_of
    from posttrain.models.positions import learnt_positions_of

    tokenizer = load_tokenizer(settings.model, settings, rows.chat_template)
    wanted, cut = within_positions(rows, learnt_positions_of(settings.model, settings))
    report, prepared = check_data(data, schemas, wanted, tokenizer, stop_ids_of(settings.model, tokenizer, settings))
    report["notes"] = [*report["notes"], *cut]
    return report, prepared, tokenizer
