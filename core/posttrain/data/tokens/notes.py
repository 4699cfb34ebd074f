"""Notes for the user on a report of tokenised rows."""

from __future__ import annotations

import dataclasses
from typing import Any

from posttrain.errors import short
from posttrain.settings import DataSettings


def notes_of(report: dict[str, Any], tokenizer: Any, stop_ids: set[int]) -> list[str]:
    """Return one line for each surprising fact in the report of ``prepare``."""
    found = [f"{count} of {report['rows']} rows left out: {reason}" for reason, count in report["dropped"].items()]
    if count := report["without_stop"]:
        last = tokenizer.decode([report["last_token"]], skip_special_tokens=False)
        names = tokenizer.convert_ids_to_tokens(sorted(stop_ids))
        found.append(
            f"{count} answers do not end with a token at which generation stops, so the model does not learn to stop: "
            f"they end with {short(last)}, and generation stops at {', '.join(names) or 'none'}. Make it the "
            "tokenizer's eos_token, or name it under eos_token_id in generation_config.json"
        )
    if count := report["template_mismatches"]:
        found.append(
            f"{count} answers begin otherwise in the chat template than where it asks for one: what is learnt follows "
            "another text than generation will. Where thinking is the reason: --chat-template-kwargs"
        )
    return found


def within_positions(settings: DataSettings, positions: int | None) -> tuple[DataSettings, list[str]]:
    """Limit rows to the learnt ``positions`` of a model; return the settings, and a note where that cuts."""
    limit = settings.max_length
    if positions is None or (limit is not None and limit <= positions):
        return settings, []
    note = f"rows are cut to {positions} tokens: the model has learnt no more positions"
    return dataclasses.replace(settings, max_length=positions), [note]
