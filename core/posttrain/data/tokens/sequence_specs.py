"""Sequences of a row by role, before any template or tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from posttrain.contract.messages import is_learnt, is_messages, message_text
from posttrain.data.convert import Row
from posttrain.data.tokens.images import PLACES, SAMPLES, places_in, refuse_media, with_pictures
from posttrain.data.values import last_turn
from posttrain.errors import DataError, SettingsError
from posttrain.network.image_reader import ImageReader
from posttrain.settings import DataSettings

Content = str | list[dict[str, Any]]
Roles = dict[str, list["SequenceSpec"]]

#: Columns that the chat template gets beside the messages.
_OF_TEMPLATE = ("tools", "chat_template_kwargs")
#: Columns that become tokens; all others are kept for the loss and the rewards.
_TOKENISED = {
    "language-modeling": ("text", "messages", "input_ids", "loss_mask", *_OF_TEMPLATE),
    "trajectory": ("messages", *_OF_TEMPLATE),
    "preference": ("prompt", "chosen", "rejected", "gold", "prompt_ids", "chosen_ids", "rejected_ids", *_OF_TEMPLATE),
    "forget-retain": (*SAMPLES, *_OF_TEMPLATE),
    "stepwise": ("prompt", "completions", "labels", *_OF_TEMPLATE),
    "prompt": (),
}
_USUAL = ("prompt", "completion", "completions", *_OF_TEMPLATE)
#: Schemas whose trained part is not always the completion alone.
_FREE = ("language-modeling", "prompt-completion", "trajectory")


@dataclass
class SequenceSpec:
    """Plan of one sequence: a prompt, what follows it, and which part is trained."""

    prompt: Content | None
    completion: Content | None
    tools: list[dict[str, Any]] | None = None
    train_on: str = "completion"
    """completion, assistant or all."""
    steps: list[str] | None = None
    """Texts of the completion; the end of each is marked."""
    labels: list[float] | None = None
    """One label per step."""
    template_kwargs: dict[str, Any] | None = None
    """This row's variables of the chat template."""
    ids: list[int] | None = None
    """The tokens themselves, for rows of tokens."""
    learnt: list[int] | None = None
    """For these, 1 for each trained token and 0 for the others; None for all."""
    sources: list[Any] = field(default_factory=list)
    """Sources of the row's images."""
    places: list[int] = field(default_factory=list)
    """Indices of this sequence's images, in order."""


def extra_columns(row: Row, schema: str) -> Row:
    """Return the columns of a row that do not become tokens."""
    tokenised = _TOKENISED.get(schema, _USUAL)
    return {name: value for name, value in row.items() if name not in tokenised}


def examples_of(
    row: Row,
    schema: str,
    origin: str,
    settings: DataSettings,
    roles: tuple[str, ...] = (),
    reader: ImageReader | None = None,
) -> list[Roles]:
    """Return ``sequence_specs`` once; with train-on each-turn one for each turn of the assistant."""
    if "input_ids" in row or "chosen_ids" in row:
        refuse_media(row, origin, None)
        return [_of_tokens(row, origin, settings, roles)]
    name = "messages" if "messages" in row else "completion"
    if settings.train_on != "each-turn" or schema not in _FREE:
        return [sequence_specs(row, schema, origin, settings, roles, reader)]
    row, sources = _shown(row, origin, settings, reader)
    if not is_messages(row.get(name)):
        raise _text_has_no_turns(origin, "each-turn")
    start: Any = row["prompt"] if name == "completion" else []
    messages = [*start, *row[name]]
    turns = [n for n, message in enumerate(messages) if is_learnt(message) and n >= len(start)]
    drafts = [SequenceSpec(messages[:n] or None, [messages[n]], row.get("tools")) for n in turns]
    return [{"completion": [as_told(draft, row, sources)]} for draft in drafts]


def _of_tokens(row: Row, origin: str, settings: DataSettings, roles: tuple[str, ...]) -> Roles:
    """Build the specs of a row of tokens. Raises SettingsError for options that select text."""
    if settings.train_on is not None:
        raise SettingsError(
            f"train-on '{settings.train_on}' chooses among texts, but {origin} has tokens: labels or a loss_mask say "
            "which are learnt. Leave train-on out."
        )
    if "input_ids" in row:
        return {"completion": [SequenceSpec(None, None, ids=row["input_ids"], learnt=row.get("loss_mask"))]}
    prompt = row.get("prompt_ids", [])
    answers = {name: row[f"{name}_ids"] for name in roles or ("chosen", "rejected")}
    return {
        name: [SequenceSpec(None, None, ids=prompt + answer, learnt=[0] * len(prompt) + [1] * len(answer))]
        for name, answer in answers.items()
    }


def sequence_specs(
    row: Row,
    schema: str,
    origin: str,
    settings: DataSettings,
    roles: tuple[str, ...] = (),
    reader: ImageReader | None = None,
) -> Roles:
    """Map roles to the sequences of a validated row. Raises for unsuitable options, or images that nothing reads.

    ``roles`` are those wanted of a forget-retain or preference row, if not its usual two.
    """
    row, sources = _shown(row, origin, settings, reader)
    found = _by_role(row, schema, origin, settings, roles)
    return {role: [as_told(draft, row, sources) for draft in drafts] for role, drafts in found.items()}


def _shown(row: Row, origin: str, settings: DataSettings, reader: ImageReader | None) -> tuple[Row, list[Any]]:
    """Number the row's image parts; return the row and the sources. Raises ModelError for other media."""
    refuse_media(row, origin, reader)
    return (row, []) if reader is None else with_pictures(row, origin, settings)


def as_told(draft: SequenceSpec, row: Row, sources: list[Any]) -> SequenceSpec:
    """Add its row's chat template variables and images to the draft."""
    draft.template_kwargs = row.get("chat_template_kwargs")
    if sources:
        draft.sources = sources
        if is_messages(draft.completion if draft.prompt is None else draft.prompt):
            draft.places = [place for content in (draft.prompt, draft.completion) for place in places_in(content)]
        else:  # text has placeholders of its own
            draft.places = draft.places or row.get(PLACES, [])
    return draft


def _by_role(row: Row, schema: str, origin: str, settings: DataSettings, roles: tuple[str, ...]) -> Roles:
    learn = settings.train_on
    if learn not in (None, "completion") and schema not in _FREE:
        raise SettingsError(
            f"train-on '{learn}' does not suit schema '{schema}', whose loss compares completions. Leave train-on out."
        )
    prompt, tools = row.get("prompt"), row.get("tools")
    if schema in ("language-modeling", "trajectory"):
        return {"completion": [_whole(row["messages"] if "messages" in row else row["text"], tools, origin, settings)]}
    if schema == "forget-retain":
        return {name: [_sample(row[name], tools, origin, settings)] for name in roles or SAMPLES[:2]}
    if schema == "preference":
        return {name: [SequenceSpec(prompt, row[name], tools)] for name in roles or ("chosen", "rejected")}
    if schema == "prompt":
        return {"prompt": [SequenceSpec(with_system(row["prompt"], settings.system_prompt), None, tools)]}
    if schema == "stepwise":
        return {"completion": [_stepwise(row)]}
    if "completions" in row:
        return {"completion": [SequenceSpec(prompt, completion, tools) for completion in row["completions"]]}
    if learn == "assistant" and not is_messages(row["completion"]):
        raise _text_has_no_turns(origin, "assistant")
    return {"completion": [SequenceSpec(prompt, row["completion"], tools, learn or "completion")]}


def with_system(prompt: Content, system_prompt: str | None) -> Content:
    """Put a system message before a prompt without one; a text then becomes a conversation."""
    if system_prompt is None:
        return prompt
    messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    if messages[0]["role"] in ("system", "developer"):
        return messages
    return [{"role": "system", "content": system_prompt}, *messages]


def _whole(content: Content, tools: Any, origin: str, settings: DataSettings) -> SequenceSpec:
    learn = settings.train_on
    if isinstance(content, str):
        if learn in ("completion", "assistant"):
            raise _text_has_no_turns(origin, learn)
        return SequenceSpec("", content, tools, "all")
    if learn != "completion":
        return SequenceSpec(None, content, tools, learn or "assistant")
    if problem := last_turn(content):
        raise DataError(f"{origin}: column 'messages' {problem}. Or choose: --train-on assistant")
    return SequenceSpec(content[:-1] or None, content[-1:], tools, "completion")


def _text_has_no_turns(origin: str, learn: str) -> SettingsError:
    needed = "prompt and completion" if learn == "completion" else "messages"
    return SettingsError(f"train-on '{learn}' needs {needed}, but {origin} has text. Leave train-on out.")


def _sample(value: Any, tools: Any, origin: str, settings: DataSettings) -> SequenceSpec:
    if isinstance(value, dict) and "prompt" in value:
        return SequenceSpec(value["prompt"], value["completion"], tools, places=value.get(PLACES, []))
    if not isinstance(value, dict):
        return _whole(value, tools, origin, settings)
    draft = _whole(value["messages" if "messages" in value else "text"], tools, origin, settings)
    draft.places = value.get(PLACES, [])
    return draft


def _stepwise(row: Row) -> SequenceSpec:
    texts = [step if isinstance(step, str) else message_text(step) for step in row["completions"]]
    # A line break ends a step, so that the mark is on a token that shows the end.
    steps = [text if text.endswith("\n") else text + "\n" for text in texts]
    joined = "".join(steps)
    prompt = row["prompt"]
    completion: Content = [{"role": "assistant", "content": joined}] if is_messages(prompt) else joined
    return SequenceSpec(
        prompt, completion, row.get("tools"), steps=steps, labels=[float(label) for label in row["labels"]]
    )
