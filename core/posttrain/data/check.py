"""``posttrain check-data``: facts of the rows, their tokens, and which of these are trained."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice, pairwise
from typing import TYPE_CHECKING, Any

from posttrain.contract.messages import is_messages
from posttrain.data.rows import Rows, read_rows
from posttrain.data.schemas import SHAPES, column_names
from posttrain.settings import DataSettings

if TYPE_CHECKING:
    from posttrain.contract.views import Example
    from posttrain.data.tokens.token_arrays import Prepared

_GREEN, _DIM, _OFF = "\x1b[32m", "\x1b[2m", "\x1b[0m"


def check_data(
    sources: Any,
    accepted: tuple[str, ...],
    settings: DataSettings,
    tokenizer: Any = None,
    stop_ids: set[int] | None = None,
) -> tuple[dict[str, Any], Prepared | None]:
    """Read and check ``sources``; with a tokenizer also tokenise them.

    Returns the report (``files``, ``schema``, ``form``, ``rows``, ``columns``, ``notes``, and under ``tokens`` the
    report of ``prepare``) and the tokenised rows, None without a tokenizer. Raises as ``read_rows`` and ``prepare``.
    """
    rows = read_rows(sources, accepted, settings)
    prepared = None
    report = describe_rows(rows)
    if tokenizer is not None and not rows.streaming:
        from posttrain.data.tokens.notes import notes_of
        from posttrain.data.tokens.preparation import prepare

        prepared = prepare(rows, tokenizer, settings, stop_ids or set(), None)
        report["tokens"] = prepared.report
        report["notes"] = [*report["notes"], *notes_of(prepared.report, tokenizer, stop_ids or set())]
    return report, prepared


def describe_rows(rows: Rows) -> dict[str, Any]:
    """Return facts about validated rows, in printing order. Reads all streamed rows."""
    count = 0
    conversational = 0
    columns: dict[str, int] = {}
    for row in rows:
        count += 1
        conversational += any(is_messages(value) and value and "role" in value[0] for value in row.values())
        for name in row:
            columns[name] = columns.get(name, 0) + 1
    form = "conversational" if conversational == count else "mixed" if conversational else "plain"
    if columns.keys() & {"input_ids", "chosen_ids"}:
        form = "tokens"
    return {
        "files": rows.names,
        "schema": rows.schema,
        "form": form,
        "rows": count,
        "columns": columns,
        "notes": [*rows.notes, *beside_tokens(rows.schema, columns)],
    }


def beside_tokens(schema: str, columns: Iterable[str], known: Iterable[str] = ()) -> list[str]:
    """Return a line on columns beyond those of ``schema``; none for prompts.

    ``known`` are columns that the method asks for. All columns of prompts are passed to rewards.
    """
    own = {name for shape in SHAPES[schema] for name in shape.kinds} | {"group_scores", *known}
    rest = [name for name in columns if name not in own]
    if not rest or schema == "prompt":
        return []
    names = column_names(dict.fromkeys(rest))
    return [f"not learnt, since no {schema} row has them: {names} (they stay beside the tokens, for the method)"]


def show(examples: Iterable[Example], tokenizer: Any, n: int, colour: bool) -> str:
    """Format the first ``n`` examples, token by token, trained ones green, or in ``[[ ]]`` without colour."""
    parts = []
    for number, example in enumerate(islice(examples, n), 1):
        lines = [f"example {number}"]
        for role, sequences in example.sequences.items():
            for sequence in sequences:
                lines.append(f"{role}: {len(sequence)} tokens, {sequence.count} learnt")
                ids, trained = sequence.ids.tolist(), sequence.trained.tolist()
                lines.append(_tokens(ids, trained, tokenizer, colour))
        if example.columns:
            lines.append(", ".join(f"{name}={str(value)[:60]!r}" for name, value in example.columns.items()))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def examples_as_data(prepared: Prepared, tokenizer: Any, n: int) -> list[dict[str, Any]]:
    """Return the first ``n`` examples as data: by role each sequence's ``text``, ``ids`` and ``spans``.

    A span is ``start`` and ``end`` of a run of trained tokens, indices into ``ids``, and its ``text``.
    """
    found = []
    for place in range(min(n, len(prepared))):
        roles: dict[str, list[dict[str, Any]]] = {}
        for role, sequences in prepared[place].sequences.items():
            roles[role] = [_as_data(one.ids.tolist(), one.trained.tolist(), tokenizer) for one in sequences]
        number = place if prepared.order is None else int(prepared.order[place])
        found.append({"row": int(prepared.arrays["rows"][number]) + 1, "sequences": roles})
    return found


def _as_data(ids: list[int], trained: list[bool], tokenizer: Any) -> dict[str, Any]:
    edges = [at for at, (before, now) in enumerate(pairwise([False, *trained, False])) if before != now]
    spans = [
        {"start": start, "end": end, "text": tokenizer.decode(ids[start:end], skip_special_tokens=False)}
        for start, end in zip(edges[::2], edges[1::2], strict=True)
    ]
    return {"text": tokenizer.decode(ids, skip_special_tokens=False), "ids": ids, "spans": spans}


def _tokens(ids: list[int], trained: list[bool], tokenizer: Any, colour: bool) -> str:
    """Join tokens with ``|``, each with line breaks and other invisible characters escaped."""
    texts = [_visible(tokenizer.decode([token], skip_special_tokens=False)) for token in ids]
    if colour:
        return "".join(
            f"{_GREEN if learnt else _DIM}{text}{_OFF}|" for text, learnt in zip(texts, trained, strict=True)
        )
    pieces = []
    for text, learnt, before, after in zip(
        texts, trained, [False, *trained], chain(trained[1:], [False]), strict=False
    ):
        opening = "[[" if learnt and not before else ""
        pieces.append(f"{opening}{text}{']]' if learnt and not after else ''}|")
    return "".join(pieces)


def _visible(text: str) -> str:
    """Escape control characters of the token's text, so that data cannot steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
