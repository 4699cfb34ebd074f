"""Rows of tokens: reduced to one text per row, without padding, with a mask of trained tokens."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from posttrain.data.convert import Notes, Row, Unconvertible, note
from posttrain.data.schemas import TOKEN_COLUMNS, TOKEN_MASKS

#: Label of a token that is not trained.
IGNORED = -100
#: Columns of texts and messages that are ignored beside tokens.
_TEXTS = ("text", "messages", "prompt", "completion", "chosen", "rejected")


def plain_tokens(row: Row, notes: Notes) -> list[Row]:
    """Split ``row`` into rows of ``input_ids`` and ``loss_mask`` (0 or 1 per token), one per text.

    All labels and masks apply, as in peers' collators: a token is trained where none excludes it. Raises Unconvertible
    for labels that are other tokens and for padding within a text.
    """
    unused = [name for name in _TEXTS if name in row]
    if unused:
        note(notes, f"tokens taken from input_ids; {', '.join(unused)} beside them not used")
    ids = row["input_ids"]
    learnt = _learnt(row, ids)
    rest = {name: value for name, value in row.items() if name not in (*TOKEN_COLUMNS, *_OWN, *unused)}
    first, end = _within_padding(row, len(ids), notes)
    starts = _starts(row, first, end)
    if len(starts) > 2:
        note(notes, "packed rows split into the texts that position_ids or seq_lengths name")
    found = []
    for start, stop in pairwise(starts):
        mask = {} if learnt is None else {"loss_mask": learnt[start:stop]}
        found.append({**rest, "input_ids": ids[start:stop], **mask})
    return found


_OWN = ("input_ids", "seq_lengths", "token_type_ids")


def token_pair(row: Row, notes: Notes) -> list[Row]:
    """Return a pair of tokens with its prompt: by default the longest common prefix, as for texts."""
    unused = [name for name in _TEXTS if name in row]
    if unused:
        note(notes, f"tokens taken from chosen_ids and rejected_ids; {', '.join(unused)} beside them not used")
    row = {name: value for name, value in row.items() if name not in unused}
    if "prompt_ids" in row:
        return [row]
    chosen, rejected = row["chosen_ids"], row["rejected_ids"]
    limit = min(len(chosen), len(rejected)) - 1
    cut = next((place for place in range(limit) if chosen[place] != rejected[place]), limit)
    note(notes, "implicit prompts extracted from chosen_ids and rejected_ids")
    if not cut:
        return [row]
    return [{**row, "prompt_ids": chosen[:cut], "chosen_ids": chosen[cut:], "rejected_ids": rejected[cut:]}]


def _learnt(row: Row, ids: list[int]) -> list[int] | None:
    """Return 1 for each trained token; None without labels or masks."""
    masks: list[Any] = [row[name] for name in TOKEN_MASKS if name in row]
    labels = row.get("labels")
    if labels is not None:
        wrong = next((n for n, label in enumerate(labels) if label not in (IGNORED, ids[n])), None)
        if wrong is not None:
            shifted = labels[:-1] == [label if label == IGNORED else ids[n + 1] for n, label in enumerate(labels[:-1])]
            hint = " They are shifted by one: labels stand at their own token." if shifted else ""
            raise Unconvertible(
                f"column 'labels' has {labels[wrong]} at place {wrong}, expected {IGNORED} or the token there, "
                f"{ids[wrong]}.{hint}"
            )
        masks.append([label != IGNORED for label in labels])
    return [int(all(entries)) for entries in zip(*masks, strict=True)] if masks else None


def _within_padding(row: Row, count: int, notes: Notes) -> tuple[int, int]:
    """Return the first token and the end of the part without padding."""
    seen = row.get("attention_mask")
    if seen is None or all(seen):
        return 0, count
    if not any(seen):
        raise Unconvertible("column 'attention_mask' is 0 everywhere, expected at least one token that is no padding.")
    first, end = seen.index(1), count - seen[::-1].index(1)
    if not all(seen[first:end]):
        hole = first + seen[first:end].index(0)
        raise Unconvertible(
            f"column 'attention_mask' is 0 at place {hole}, between tokens that are seen. Expected padding at the "
            "ends alone."
        )
    note(notes, "padding left out of rows of tokens")
    return first, end


def _starts(row: Row, first: int, end: int) -> list[int]:
    """Return the start of each text, and the end of the last."""
    if lengths := row.get("seq_lengths"):
        if sum(lengths) != end - first:
            raise Unconvertible(f"column 'seq_lengths' adds up to {sum(lengths)}, expected {end - first} tokens.")
        places = [first]
        for length in lengths:
            places.append(places[-1] + length)
        return [place for n, place in enumerate(places) if not n or place > places[n - 1]]
    positions = row.get("position_ids")
    if positions is None:
        return [first, end]
    return [first, *(n for n in range(first + 1, end) if positions[n] != positions[n - 1] + 1), end]
