"""Conversion of rows between schemas, and extraction of prompts from preference pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from posttrain.contract.messages import is_messages
from posttrain.data.values import last_turn

Row = dict[str, Any]
Notes = dict[str, int]
#: Characters from which a prompt does not begin an answer by chance.
_SENTENCE = 8


def note(notes: Notes, text: str) -> None:
    """Count one row converted by the conversion ``text``."""
    notes[text] = notes.get(text, 0) + 1


class Unconvertible(ValueError):
    """A row that cannot be converted; the text names the column."""


def same_form(row: Row, schema: str, notes: Notes) -> Row:
    """Convert a text prompt of conversational completions to a user message, and the reverse."""
    names = ("chosen", "rejected") if schema == "preference" else ("completion",)
    if any(row.get(name) is None for name in ("prompt", *names)):
        return row
    prompt: Any = row["prompt"]
    completions: list[Any] = [row[name] for name in names]
    if isinstance(prompt, str) and all(is_messages(value) and value for value in completions):
        if schema == "preference" and all(value[0].get("role") != "assistant" for value in completions):
            note(notes, "prompts taken from the conversations in chosen and rejected; the text in prompt was not used")
            return {name: value for name, value in row.items() if name != "prompt"}
        note(notes, "text prompts made into user messages, because the completions are messages")
        return {**row, "prompt": [{"role": "user", "content": prompt}]}
    if is_messages(prompt) and prompt and all(isinstance(value, str) and value for value in completions):
        note(notes, "text completions made into assistant messages, because the prompts are messages")
        answers = {name: [{"role": "assistant", "content": row[name]}] for name in names}
        return {**row, **answers}
    return row


def note_repeated_prompt(row: Row, notes: Notes) -> None:
    """Count a row all of whose answers begin with its prompt, several words or messages long."""
    prompt: Any = row.get("prompt")
    given = [row.get(name) for name in ("chosen", "rejected", "completion")]
    answers: list[Any] = [answer for answer in [*given, *(row.get("completions") or [])] if answer is not None]
    if isinstance(prompt, str):
        prompt = prompt.strip()
        again = len(prompt) >= _SENTENCE and all(isinstance(a, str) and a.lstrip().startswith(prompt) for a in answers)
    else:
        again = is_messages(prompt) and bool(prompt) and all(a[: len(prompt)] == prompt for a in answers)
    if answers and again:
        note(notes, "prompts repeated at the beginning of the answers: the model would read, or learn, them twice")


def explicit_prompt(row: Row, notes: Notes) -> Row:
    """Move the longest common prefix of a pair's completions into a prompt.

    Texts are cut before white space or punctuation, never inside a word; messages before an assistant's. Both
    completions keep at least one character or message. Raises Unconvertible for conversations without a common prompt.
    """
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str) != isinstance(rejected, str):
        return row
    cut = _text_cut(chosen, rejected) if isinstance(chosen, str) else _message_cut(chosen, rejected)
    note(notes, "implicit prompts extracted from chosen and rejected")
    return {**row, "prompt": chosen[:cut], "chosen": chosen[cut:], "rejected": rejected[cut:]}


def _common(first: Any, second: Any) -> int:
    limit = min(len(first), len(second)) - 1
    return next((index for index in range(limit) if first[index] != second[index]), max(limit, 0))


def _text_cut(chosen: str, rejected: str) -> int:
    cut = _common(chosen, rejected)
    while cut and (_inside_word(chosen, cut) or _inside_word(rejected, cut)):
        cut -= 1
    # The white space before a word belongs to the word's token.
    while cut and chosen[cut - 1].isspace():
        cut -= 1
    return cut


def _inside_word(text: str, cut: int) -> bool:
    return text[cut - 1].isalnum() and text[cut : cut + 1].isalnum()


def _message_cut(chosen: list[Row], rejected: list[Row]) -> int:
    cut = _common(chosen, rejected)
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        role = messages[cut].get("role")
        if role != "assistant":
            raise Unconvertible(
                f"column '{name}' differs from the other one at message {cut + 1}, a '{role}' message: "
                "the two have no common prompt. Expected the same messages before the assistant's answer."
            )
    return cut


def ranked_by_score(row: Row, notes: Notes) -> Row:
    """Sort completions with scores, best first."""
    scores = row.get("scores")
    if not scores or all(first >= second for first, second in pairwise(scores)):
        return row
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    note(notes, "completions put in the order of their scores, best first")
    return {**row, "completions": [row["completions"][i] for i in order], "scores": [scores[i] for i in order]}


def single_scores(row: Row, notes: Notes) -> list[Row]:
    """Split several scored completions into rows, each with the scores of all as ``group_scores``."""
    if "completions" not in row:
        return [row]
    note(notes, "scored completions split, one row each; group_scores has the scores of all of them")
    rest = {name: value for name, value in row.items() if name not in ("completions", "scores")}
    pairs = zip(row["completions"], row["scores"], strict=True)
    return [{**rest, "completion": text, "score": score, "group_scores": row["scores"]} for text, score in pairs]


def _unpaired(row: Row) -> list[Row]:
    rest = {name: value for name, value in row.items() if name not in ("chosen", "rejected", "margin")}
    return [
        {**rest, "completion": row["chosen"], "label": True},
        {**rest, "completion": row["rejected"], "label": False},
    ]


def _last_turn(row: Row) -> list[Row]:
    rest = {name: value for name, value in row.items() if name != "messages"}
    messages = row["messages"]
    if last_turn(messages):
        raise Unconvertible(
            f"column 'messages' ends with a '{messages[-1]['role']}' message, expected the assistant's."
        )
    if len(messages) < 2:
        raise Unconvertible("column 'messages' has one message, expected a prompt before the assistant's answer.")
    return [{**rest, "prompt": messages[:-1], "completion": messages[-1:]}]


def _joined(row: Row) -> list[Row]:
    rest = {name: value for name, value in row.items() if name not in ("prompt", "completion")}
    name = "messages" if is_messages(row["completion"]) else "text"
    return [{**rest, name: row["prompt"] + row["completion"]}]


@dataclass(frozen=True)
class Conversion:
    """A conversion of rows with the schema ``source`` and column ``column`` to ``target``."""

    source: str
    column: str
    target: str
    apply: Callable[[Row], list[Row]]
    note: str


CONVERSIONS = (
    Conversion("preference", "chosen", "unpaired-preference", _unpaired, "pairs split into good and bad completions"),
    Conversion(
        "language-modeling", "messages", "prompt-completion", _last_turn, "messages split before the last answer"
    ),
    Conversion("prompt-completion", "completion", "language-modeling", _joined, "prompt and completion joined"),
)
