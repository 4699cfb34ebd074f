"""Drafts rendered to text with the character positions that matter: prompt's end, trained spans, ends of steps."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from posttrain.contract.messages import is_messages, message_text
from posttrain.data.tokens.sequence_specs import SequenceSpec
from posttrain.errors import DataError, ModelError, SettingsError
from posttrain.settings import DataSettings

_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
Messages = list[dict[str, Any]]
Span = tuple[int, int]


@dataclass
class Layout:
    """The text of one sequence; all positions count its characters."""

    text: str
    plain: bool
    """The tokenizer adds its special tokens; a chat template has written them already."""
    boundary: int
    """Where the prompt ends: truncation cuts before it from the start, behind it from the end."""
    spans: list[Span]
    """What is learnt."""
    end: bool = False
    """An end-of-sequence token follows."""
    marks: list[int] = field(default_factory=list)
    """Where steps end."""
    labels: list[float] = field(default_factory=list)
    mismatch: bool = False
    """The template renders the start of the answer in another way when it asks for one than when it has it."""


class Templates:
    """Renders drafts with a tokenizer's chat template, or the one of ``settings.chat_template``."""

    def __init__(self, tokenizer: Any, settings: DataSettings):
        self.tokenizer = tokenizer
        self.settings = settings
        self.override = _read_template(settings.chat_template)

    @property
    def source(self) -> str:
        """The template's text, for the cache; empty if there is none."""
        return self.override or str(getattr(self.tokenizer, "chat_template", None) or "")

    def layout(self, draft: SequenceSpec, origin: str) -> Layout:
        """Text and positions of one draft. Raises DataError or ModelError naming ``origin``."""
        if self.settings.chat and isinstance(draft.prompt, str) and draft.prompt:
            draft = _as_messages(draft)
        if isinstance(draft.prompt, list) or isinstance(draft.completion, list):
            return self._conversation(draft, origin)
        return self._plain(draft)

    def render(self, messages: Messages, tools: Any, origin: str, ask: bool = False) -> str:
        """The conversation as text; ``ask`` adds the beginning of an assistant's turn."""
        if not self.source:
            raise ModelError(
                f"{origin}: messages need a chat template, and the tokenizer has none. "
                "Give one with --chat-template FILE, or use text columns."
            )
        try:
            return self.tokenizer.apply_chat_template(
                messages, tools=tools, chat_template=self.override, add_generation_prompt=ask, tokenize=False
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise DataError(f"{origin}: the chat template refuses these messages: {str(error).rstrip('.')}.") from None

    def _plain(self, draft: SequenceSpec) -> Layout:
        prompt, completion = str(draft.prompt or ""), draft.completion
        if completion is None:
            return Layout(prompt, True, len(prompt), [])
        text = prompt + str(completion)
        ended = text.endswith(self.tokenizer.eos_token or "\0")
        return Layout(
            text,
            True,
            len(prompt),
            [(0 if draft.train_on == "all" else len(prompt), len(text))],
            end=self.settings.end_of_sequence and not ended and draft.steps is None,
            marks=[len(prompt) + length for length in accumulate(map(len, draft.steps or []))],
            labels=draft.labels or [],
        )

    def _conversation(self, draft: SequenceSpec, origin: str) -> Layout:
        prompt: Messages = draft.prompt if is_messages(draft.prompt) else []  # type: ignore[assignment]  # narrowed
        if draft.completion is None:
            text = self.render(prompt, draft.tools, origin, ask=True)
            return Layout(text, False, len(text), [])
        completion: Messages = draft.completion  # type: ignore[assignment]  # rows mix no forms
        text = self.render(prompt + completion, draft.tools, origin)
        boundary, mismatch = self._boundary(prompt, draft, text, origin) if prompt else (0, False)
        alone = len(completion) == 1 and bool(prompt)
        if draft.train_on == "all":
            spans = [(0, len(text))]
        elif draft.train_on == "completion" and alone:
            spans = [(boundary, len(text))]
        else:
            spans = self.spans(prompt + completion, draft.tools, text, origin)
            if draft.train_on == "completion":
                spans = [(max(start, boundary), end) for start, end in spans if end > boundary]
        if not prompt and spans:
            boundary = spans[0][0]
        marks = _step_marks(draft, text, boundary, origin)
        return Layout(text, False, boundary, spans, marks=marks, labels=draft.labels or [], mismatch=mismatch)

    def _boundary(self, prompt: Messages, draft: SequenceSpec, text: str, origin: str) -> tuple[int, bool]:
        asked = self.render(prompt, draft.tools, origin, ask=True)
        if text.startswith(asked):
            return len(asked), False
        shared = _shared(asked, text)
        if shared < len(self.render(prompt, draft.tools, origin)):
            raise _rewritten(origin, "the prompt")
        return shared, True

    def spans(self, messages: Messages, tools: Any, text: str, origin: str) -> list[Span]:
        """What the assistant says in ``text``: by the template's generation markers, or else by rendering prefixes."""
        template = self.override or self.tokenizer.get_chat_template(None, tools=tools)
        if _MARKERS.search(template):
            marked: Any = render_jinja_template(
                [messages],
                tools=tools,
                chat_template=template,
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
            )
            return [(start, end) for start, end in marked[1][0] if end > start]
        found: list[Span] = []
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                after = found[-1][1] if found else 0
                found.append(self._turn(messages, index, tools, text, after, origin))
        return found

    def _turn(self, messages: Messages, index: int, tools: Any, text: str, after: int, origin: str) -> Span:
        content = message_text(messages[index]).strip()
        place = text.find(content, after) if content else -1
        start = self._turn_start(messages, index, tools, text, origin)
        if start is None:
            start = place
        if index == len(messages) - 1:
            end = len(text)
        else:
            done = self.render(messages[: index + 1], tools, origin)
            end = len(done) if text.startswith(done) else (place + len(content) if place >= 0 else -1)
        if start < after or end <= start:
            raise _rewritten(origin, f"message {index + 1}")
        return start, end

    def _turn_start(self, messages: Messages, index: int, tools: Any, text: str, origin: str) -> int | None:
        if index == 0:
            return None  # nothing to render before it; many templates refuse an empty conversation
        asked = self.render(messages[:index], tools, origin, ask=True)
        if text.startswith(asked):
            return len(asked)
        shared = _shared(asked, text)
        return shared if shared >= len(self.render(messages[:index], tools, origin)) else None


def _step_marks(draft: SequenceSpec, text: str, boundary: int, origin: str) -> list[int]:
    if not draft.steps:
        return []
    marks = []
    position = boundary
    for number, step in enumerate(draft.steps, 1):
        stripped = step.strip()
        place = text.find(stripped, position)
        if place < 0:
            raise _rewritten(origin, f"step {number}")
        position = place + len(stripped)
        # The line break that ends the step, where the template kept it.
        position += text.startswith("\n", position)
        marks.append(position)
    return marks


def _shared(first: str, second: str) -> int:
    """Length of the common beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))


def _rewritten(origin: str, what: str) -> DataError:
    return DataError(
        f"{origin}: the chat template rewrites {what} depending on what follows, so its tokens cannot be told apart. "
        "Give a template with {% generation %} markers with --chat-template FILE, or one answer per row "
        "(prompt, completion)."
    )


def _as_messages(draft: SequenceSpec) -> SequenceSpec:
    """Turn a prompt and an answer of plain text into a user's message and an assistant's."""
    answer = draft.completion
    if isinstance(answer, str):
        answer = [{"role": "assistant", "content": answer}]
    return replace(draft, prompt=[{"role": "user", "content": draft.prompt}], completion=answer)


def _read_template(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"chat-template '{path}': cannot be read ({error}). Expected a Jinja file.") from None
