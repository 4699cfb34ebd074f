"""Schemas as data: columns, their kinds, and their descriptions in messages."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from posttrain.contract.messages import is_messages
from posttrain.data import values
from posttrain.errors import short

Kind = Callable[[Any], str | None]


@dataclass(frozen=True)
class Shape:
    """One set of columns that a schema accepts. A schema with several shapes takes the first that is present."""

    required: dict[str, Kind]
    optional: dict[str, Kind] = field(default_factory=dict)
    pairs: tuple[tuple[str, str], ...] = ()
    """Columns that share one form (text or messages), the prompt first."""
    aligned: tuple[tuple[str, str], ...] = ()
    """Lists of equal length."""

    @property
    def tokens(self) -> bool:
        """Whether the rows are tokens already."""
        return values.token_ids in self.required.values()

    @property
    def kinds(self) -> dict[str, Kind]:
        """Every column that this shape knows, including those of the chat template."""
        return {
            **self.required,
            **self.optional,
            "tools": values.tools,
            "chat_template_kwargs": values.template_kwargs,
        }


_PROMPTED = (("prompt", "completion"),)
#: Columns with one entry per token that mark trained tokens; an absent one excludes none.
TOKEN_MASKS = ("completion_mask", "assistant_masks", "loss_mask")
#: Columns of rows of tokens. ``aligned`` is checked for those that a row has.
TOKEN_COLUMNS: dict[str, Kind] = {
    "labels": values.token_labels,
    **dict.fromkeys((*TOKEN_MASKS, "attention_mask"), values.token_mask),
    "position_ids": values.token_counts,
}
_TOKENS = Shape(
    {"input_ids": values.token_ids},
    {**TOKEN_COLUMNS, "seq_lengths": values.token_counts, "token_type_ids": values.token_counts},
    aligned=tuple(("input_ids", name) for name in TOKEN_COLUMNS),
)
_TOKEN_PAIRS = Shape(
    {"chosen_ids": values.token_ids, "rejected_ids": values.token_ids},
    {"prompt_ids": values.token_ids, "margin": values.number},
)
#: Schema -> accepted shapes.
SHAPES: dict[str, tuple[Shape, ...]] = {
    "language-modeling": (Shape({"messages": values.conversation}), Shape({"text": values.text}), _TOKENS),
    "prompt-completion": (Shape({"prompt": values.prompt, "completion": values.completion}, pairs=_PROMPTED),),
    "preference": (
        Shape(
            {"chosen": values.completion, "rejected": values.completion},
            {"prompt": values.prompt, "margin": values.number, "gold": values.completion},
            pairs=(("chosen", "rejected"), ("prompt", "chosen")),
        ),
        _TOKEN_PAIRS,
    ),
    "unpaired-preference": (
        Shape({"prompt": values.prompt, "completion": values.completion, "label": values.boolean}, pairs=_PROMPTED),
    ),
    "ranked": (
        Shape(
            {"prompt": values.prompt, "completions": values.completions},
            {"scores": values.numbers},
            pairs=(("prompt", "completions"),),
            aligned=(("completions", "scores"),),
        ),
    ),
    "scored": (
        Shape({"prompt": values.prompt, "completion": values.completion, "score": values.number}, pairs=_PROMPTED),
        Shape(
            {"prompt": values.prompt, "completions": values.completions, "scores": values.numbers},
            pairs=(("prompt", "completions"),),
            aligned=(("completions", "scores"),),
        ),
    ),
    "stepwise": (
        Shape(
            {"prompt": values.prompt, "completions": values.steps, "labels": values.step_labels},
            aligned=(("completions", "labels"),),
        ),
    ),
    "forget-retain": (
        Shape(
            {"forget": values.sample, "retain": values.sample},
            {"alternative": values.sample, "retain_alternative": values.sample},
        ),
    ),
    "trajectory": (Shape({"messages": values.conversation}, {"score": values.number}),),
    "prompt": (Shape({"prompt": values.asking}),),
}
#: Requirements of the schemas, as in messages.
NEEDS = {
    "language-modeling": "text (text), messages (messages) or input_ids (tokens)",
    "prompt-completion": "prompt, completion (text or messages)",
    "preference": "prompt, chosen, rejected (text or messages)",
    "unpaired-preference": "prompt, completion (text or messages), label (true or false)",
    "ranked": "prompt (text or messages), completions (a list, best first)",
    "scored": "prompt, completion (text or messages), score (a number), or completions and scores",
    "stepwise": "prompt (text or messages), completions (a list of steps), labels (one per step)",
    "forget-retain": "forget, retain (text, messages, or prompt and completion), alternative where it is asked for",
    "trajectory": "messages (messages)",
    "prompt": "prompt (text or messages)",
}


def fitting(row: dict[str, Any], schemas: tuple[str, ...]) -> tuple[str, Shape] | None:
    """Find the schema whose required columns are all in ``row``: tokens before texts, then with most columns."""
    found = [(schema, shape) for schema in schemas for shape in SHAPES[schema] if all(n in row for n in shape.required)]
    return max(found, key=lambda pair: (pair[1].tokens, len(pair[1].required)), default=None)


def missing(row: dict[str, Any], schemas: tuple[str, ...]) -> str:
    """Return the message, after the origin, for a row that fits none of ``schemas``."""
    candidates = [(schema, shape) for schema in schemas for shape in SHAPES[schema]]
    schema, shape = max(candidates, key=lambda pair: sum(name in row for name in pair[1].required))
    absent = next(name for name in shape.required if name not in row)
    have = column_names(row)
    return (
        f"column '{absent}' is missing. Schema '{schema}' needs {NEEDS[schema]}. "
        f"The row has: {have}. Name columns with: --columns {absent}=NAME"
    )


def column_names(row: dict[str, Any]) -> str:
    """Return the columns of a row in words."""
    named = (name if name.isprintable() else repr(name)[1:-1] for name in map(str, row))
    names = [name if len(name) <= 40 else name[:37] + "..." for name in named]
    rest = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(names[:20]) + rest or "no column"


def problem(row: dict[str, Any], shape: Shape) -> str | None:
    """Return what is wrong with a row that has the columns of ``shape``, naming the column; None if nothing is."""
    for name, kind in shape.kinds.items():
        if name in row and (text := kind(row[name])):
            return f"column '{name}' {text}."
    for first, second in shape.pairs:
        if first in row and (text := _form_problem(first, row[first], row[second])):
            return f"column '{second}' {text}."
    for first, second in shape.aligned:
        if second in row and len(row[first]) != len(row[second]):
            return f"column '{second}' has {len(row[second])} entries, expected {len(row[first])}, one per '{first}'."
    for name, value in row.items():
        if shape.tokens and name in shape.kinds:
            continue  # numbers, checked one by one already
        if _has_nan(value):
            return f"column '{name}' has NaN, expected a finite number or null."
        if (text := _half_character(value)) is not None:
            return (
                f"column '{name}' has {short(text)}, half of a character in UTF-16 (a lone surrogate), expected text."
            )
    return None


def _form_problem(first: str, value: Any, other: Any) -> str | None:
    several = other if isinstance(other, list) and not is_messages(other) else [other]
    for item in several:
        if text := values.mixed_forms(value, item):
            return text if first == "prompt" else text.replace("the prompt", f"'{first}'")
    return None


def _has_nan(value: Any) -> bool:
    items = value if isinstance(value, list) else (value,)
    return any(isinstance(item, float) and math.isnan(item) for item in items)


def _half_character(value: Any) -> str | None:
    """Return the first lone surrogate with its surroundings; JSON can name one, no tokenizer can read it."""
    if isinstance(value, str):
        if value.isascii():
            return None
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return value[max(0, error.start - 10) : error.start + 10]
        return None
    if isinstance(value, dict):
        value = [*value, *value.values()]
    found = (_half_character(item) for item in value) if isinstance(value, list) else iter(())
    return next((text for text in found if text is not None), None)


def tidy(row: dict[str, Any], shape: Shape, filled: bool) -> dict[str, Any]:
    """Undo artefacts of file formats: nulls for absent optional columns and keys, tools as JSON text, 1 for true."""
    kinds = shape.kinds
    row = {name: value for name, value in row.items() if value is not None or name in shape.required}
    if filled:
        row = {name: _without_nulls(value) if name in kinds else value for name, value in row.items()}
    for name in ("tools", "chat_template_kwargs"):
        if isinstance(row.get(name), str):
            row[name] = _parsed(row[name])
    if row.get("tools") == []:  # some templates render an empty list unlike no tools
        del row["tools"]
    if "label" in kinds and row.get("label") in (0, 1):
        row["label"] = bool(row["label"])
    return row


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        # A message with only tool calls has a null content; templates test for it.
        return {key: _without_nulls(item) for key, item in value.items() if item is not None or key == "content"}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


_CONTENT = (values.prompt, values.asking, values.completion, values.sample)
_WORDS = {"true": True, "false": False}


def from_text(row: dict[str, Any], shape: Shape) -> dict[str, Any]:
    """Convert the columns of a CSV row to the schema's types; text that cannot be converted stays and is refused."""
    row = dict(row)
    for name, kind in shape.kinds.items():
        value = row.get(name)
        if not isinstance(value, str):
            continue
        if value == "" and name not in shape.required:
            del row[name]
        elif kind is values.boolean:
            row[name] = _WORDS.get(value.strip().lower(), {"1": True, "0": False}.get(value.strip(), value))
        elif kind is values.number:
            row[name] = _number(value)
        elif kind is not values.text and value.lstrip().startswith(("[", "{")):
            parsed = _parsed(value)
            # A prompt may be text that happens to be JSON; only a conversation is parsed.
            row[name] = parsed if kind not in _CONTENT or _has_roles(parsed) else value
    return row


def _number(value: str) -> Any:
    try:
        return float(value)
    except ValueError:
        return value


def _parsed(value: str) -> Any:
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return parsed if isinstance(parsed, list | dict) else value


def _has_roles(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) and "role" in item for item in value)
