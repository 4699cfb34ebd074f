"""What each row of a schema is made of, by role, before any template or tokenizer is asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from posttrain.contract.messages import is_learnt, is_messages, message_text
from posttrain.data.convert import Row
from posttrain.data.tokens.images import places_in, refuse_media, with_pictures
from posttrain.data.values import last_turn
from posttrain.errors import DataError, SettingsError
from posttrain.network.image_reader import ImageReader
from posttrain.settings import DataSettings

Content = str | list[dict[str, Any]]
Roles = dict[str, list["SequenceSpec"]]

#: Columns of forget-retain rows that may hold a sample. ``alternative`` is what to say instead of what is forgotten.
SAMPLES = ("forget", "retain", "alternative", "retain_alternative")
#: Columns that the chat template is given beside the messages.
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
#: Schemas whose rows may be learnt in other ways than the completion alone.
_FREE = ("language-modeling", "prompt-completion", "trajectory")


@dataclass
class SequenceSpec:
    """One sequence to be: a prompt, what follows it, and which of it is learnt."""

    prompt: Content | None
    completion: Content | None
    tools: list[dict[str, Any]] | None = None
    train_on: str = "completion"
    """completion, assistant or all."""
    steps: list[str] | None = None
    """The texts that make up the completion; the end of each is marked."""
    labels: list[float] | None = None
    """One label a step."""
    template_kwargs: dict[str, Any] | None = None
    """Variables of the chat template that this row sets."""
    ids: list[int] | None = None
    """The tokens themselves, of rows that are tokens already."""
    learnt: list[int] | None = None
    """Of those, 1 for each token that is learnt and 0 for the others; None for all."""
    sources: list[Any] = field(default_factory=list)
    """What the row's pictures are named by."""
    places: list[int] = field(default_factory=list)
    """Which of them stand in this sequence, in order."""


def extra_columns(row: Row, schema: str) -> Row:
    """The columns of a row that do not become tokens."""
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
    """What ``sequence_specs`` gives, once; with train-on each-turn once for each turn of the assistant."""
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
    """What a row of tokens is made of. Raises SettingsError where options choose among words."""
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
    """Role -> sequences of a validated row. Raises where the options do not suit the row, or nothing reads its images.

    ``roles`` are those wanted of a forget-retain or preference row, where they are not its usual two.
    """
    row, sources = _shown(row, origin, settings, reader)
    found = _by_role(row, schema, origin, settings, roles)
    return {role: [as_told(draft, row, sources) for draft in drafts] for role, drafts in found.items()}


def _shown(row: Row, origin: str, settings: DataSettings, reader: ImageReader | None) -> tuple[Row, list[Any]]:
    """The row with numbered parts for its pictures, and what they are named by. Raises ModelError for other media."""
    refuse_media(row, origin, reader)
    return (row, []) if reader is None else with_pictures(row, origin, settings)


def as_told(draft: SequenceSpec, row: Row, sources: list[Any]) -> SequenceSpec:
    """The draft with the variables of the chat template that its row sets, and its pictures."""
    draft.template_kwargs = row.get("chat_template_kwargs")
    if sources:
        draft.sources = sources
        draft.places = [place for content in (draft.prompt, draft.completion) for place in places_in(content)]
        if not is_messages(draft.completion if draft.prompt is None else draft.prompt):
            draft.places = list(range(len(sources)))  # text has placeholders of its own
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
    """The prompt under a system message, unless it has one; with a system message a text becomes a conversation."""
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
    if isinstance(value, dict):
        return SequenceSpec(value["prompt"], value["completion"], tools)
    return _whole(value, tools, origin, settings)


def _stepwise(row: Row) -> SequenceSpec:
    texts = [step if isinstance(step, str) else message_text(step) for step in row["completions"]]
    # A line break ends a step, so that the mark stands on a token that says the step is over.
    steps = [text if text.endswith("\n") else text + "\n" for text in texts]
    joined = "".join(steps)
    prompt = row["prompt"]
    completion: Content = [{"role": "assistant", "content": joined}] if is_messages(prompt) else joined
    return SequenceSpec(
        prompt, completion, row.get("tools"), steps=steps, labels=[float(label) for label in row["labels"]]
    )
