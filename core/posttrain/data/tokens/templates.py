"""Drafts rendered to text with character positions: prompt's end, trained spans, ends of steps."""

from __future__ import annotations

import json
import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from posttrain.contract.images import Image
from posttrain.contract.messages import is_learnt, is_messages
from posttrain.data.tokens.answers import Chat, Turn, UnclearTurn, find_turns, next_opener, with_scaffold, within_marks
from posttrain.data.tokens.forms import Forms, find_forms
from posttrain.data.tokens.images import expanded
from posttrain.data.tokens.lost_text import Loss, find_loss, find_unread
from posttrain.data.tokens.sequence_specs import SequenceSpec
from posttrain.errors import DataError, ModelError, SettingsError, short
from posttrain.network.image_reader import ImageReader, reader_of
from posttrain.servers.memory_limit import memory_limit
from posttrain.servers.time_limit import OutOfTime, time_limit
from posttrain.settings import DataSettings

_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
#: Exceptions of a template that refuses messages.
_REFUSALS = (
    *(jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError),
    *(ArithmeticError, RecursionError),
)
#: Limits of a template: seconds per conversation, characters beyond those of the messages, and bytes of its first text.
SECONDS, LARGEST, MEMORY = 20.0, 4_000_000, 2 * 2**30
Messages = list[dict[str, Any]]
Span = tuple[int, int]


@dataclass
class Layout:
    """Text of one sequence; all positions count its characters."""

    text: str
    plain: bool
    """The tokenizer adds its special tokens, which a chat template has already written."""
    boundary: int
    """End of the prompt: truncation cuts before it from the start, after it from the end."""
    spans: list[Span]
    """Trained parts."""
    end: bool = False
    """An end-of-sequence token follows."""
    marks: list[int] = field(default_factory=list)
    """Ends of steps."""
    labels: list[float] = field(default_factory=list)
    mismatch: bool = False
    """The template renders the answer's start differently in a request for it than in the answer."""
    loss: Loss | None = None
    """Part of a trained answer that the template does not write."""
    given: tuple[list[int], list[int] | None] | None = None
    """Tokens of the row instead of a text, and which of them are trained."""
    opener: str | None = None
    """Token that opens the next message: it ends the last answer where the template writes no other end."""
    images: tuple[Image, ...] = ()
    """Images whose placeholders are in the text, in order."""


class Templates:
    """Renders drafts with a tokenizer's chat template, or that of ``settings.chat_template``."""

    def __init__(self, tokenizer: Any, settings: DataSettings):
        self.tokenizer = tokenizer
        self.settings = settings
        self.reader = reader_of(tokenizer)
        self.override = _read_template(settings.chat_template)
        self.options = {name: _parsed(value) for name, value in (settings.chat_template_kwargs or {}).items()}
        self.special = _special_tokens(tokenizer)
        self._forms: dict[str, Forms] = {}
        self._ends: dict[str, set[str]] = {}
        self._openers: dict[str, str | None] = {}
        self._shown: dict[str, bool] = {}
        self._tried = False

    @property
    def source(self) -> str:
        """Text of the template; empty without one."""
        return self.override or str(getattr(self.tokenizer, "chat_template", None) or "")

    @cached_property
    def adds_text(self) -> bool:
        """Whether the template adds text to a prompt; False without a template."""
        if not self.source:
            return False
        try:
            return self.render([{"role": "user", "content": "x"}], None, "a prompt", ask=True).strip() != "x"
        except DataError:  # it requires other roles, or a system message
            return True

    def layout(self, draft: SequenceSpec, origin: str) -> Layout:
        """Return text and positions of one draft. Raises DataError or ModelError naming ``origin``."""
        if draft.ids is not None:
            return self._given(draft, origin)
        if self.settings.chat and isinstance(draft.prompt, str) and draft.prompt:
            draft = _as_messages(draft, self.reader)
        messages = isinstance(draft.prompt, list) or isinstance(draft.completion, list)
        layout = self._conversation(draft, origin) if messages else self._plain(draft)
        if self.reader is None:
            return layout
        return expanded(layout, draft.sources, draft.places, self.reader, origin)

    @cached_property
    def vocabulary(self) -> int:
        """Largest token id plus one."""
        return max(len(self.tokenizer), 1 + max(self.tokenizer.get_vocab().values(), default=0))

    def _given(self, draft: SequenceSpec, origin: str) -> Layout:
        assert draft.ids is not None
        if max(draft.ids) >= self.vocabulary:
            place = next(n for n, token in enumerate(draft.ids) if token >= self.vocabulary)
            raise DataError(
                f"{origin}: has token {draft.ids[place]} at place {place}, and the tokenizer knows {self.vocabulary}. "
                "The row was made with another tokenizer: make it anew, or train the model that it was made for."
            )
        return Layout("", True, 0, [], given=(draft.ids, draft.learnt))

    def render(
        self, messages: Messages, tools: Any, origin: str, ask: bool = False, variables: dict[str, Any] | None = None
    ) -> str:
        """Render messages in the template's own forms; ``ask`` adds the beginning of an assistant's turn.

        ``variables`` are the row's for the template, and override those of the run.
        """
        if not self.source:
            raise ModelError(
                f"{origin}: messages need a chat template, and the tokenizer has none. "
                "Give one with --chat-template FILE, or use text columns."
            )
        try:
            with time_limit(SECONDS), self._bounded():
                text = self.tokenizer.apply_chat_template(
                    messages,
                    tools=tools,
                    chat_template=self.override,
                    add_generation_prompt=ask,
                    tokenize=False,
                    **{**self.options, **(variables or {})},
                )
        except OutOfTime:
            raise DataError(
                f"{origin}: the chat template has not ended after {SECONDS:g} seconds. Give another: --chat-template "
                "FILE"
            ) from None
        except MemoryError:
            raise DataError(
                f"{origin}: the chat template needs more than {MEMORY // 2**30} GiB of memory. Give another: "
                "--chat-template FILE"
            ) from None
        except _REFUSALS as error:
            text = str(error).rstrip(".") or type(error).__name__
            raise DataError(f"{origin}: the chat template refuses these messages: {text}.") from None
        if len(text) > LARGEST and len(text) > LARGEST + 100 * len(str(messages)):  # that is slow to ask
            raise DataError(
                f"{origin}: the chat template makes {len(text)} characters of these messages, expected at most "
                f"{LARGEST} beside a hundred times their own. Give another: --chat-template FILE"
            )
        return text

    def _bounded(self) -> AbstractContextManager[None]:
        """Limit the memory of a template's first text: later, other threads may need much at the same time."""
        if self._tried:
            return nullcontext()
        self._tried = True
        return memory_limit(MEMORY)

    def _rendered(self, messages: Messages, draft: SequenceSpec, origin: str, ask: bool = False) -> str:
        return self.render(messages, draft.tools, origin, ask, draft.template_kwargs)

    def _kwargs(self, draft: SequenceSpec) -> dict[str, Any]:
        """Return the template's variables: the run's, overridden by the row's."""
        return {**self.options, **(draft.template_kwargs or {})}

    def _key(self, draft: SequenceSpec) -> str:
        """Return a key of everything that the template's behaviour may depend on."""
        return json.dumps([self._kwargs(draft), bool(draft.tools)], sort_keys=True, default=repr)

    def _known(self, draft: SequenceSpec, origin: str) -> tuple[Forms, set[str]]:
        """Return the forms that the template accepts, and the known ends of its turns."""
        key = self._key(draft)
        if key not in self._forms:
            self._forms[key] = find_forms(lambda messages: self._rendered(messages, draft, origin))
        return self._forms[key], self._ends.setdefault(key, set())

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
        forms, ends = self._known(draft, origin)
        prompt = forms.adapted(draft.prompt) if is_messages(draft.prompt) else []  # type: ignore[arg-type]
        asked = self._rendered(prompt, draft, origin, ask=True) if prompt else None
        if draft.completion is None:
            return Layout(
                asked or "", False, len(asked or ""), [], loss=self._unread(draft, prompt, asked or "", origin)
            )
        messages = prompt + forms.adapted(draft.completion)  # type: ignore[arg-type]  # rows do not mix forms
        chat = Chat(
            messages,
            self._rendered(messages, draft, origin),
            lambda some, ask=False: self._rendered(some, draft, origin, ask),
            self.special,
            origin,
        )
        first = len(prompt) if draft.train_on == "completion" else 0
        wanted = [n for n, message in enumerate(messages) if is_learnt(message) and n >= first]
        alone = wanted == [len(prompt)]
        if draft.train_on == "all":
            return self._layout(draft, chat, [], asked)
        try:
            turns = find_turns(chat, wanted, asked if alone else None, ends)
        except UnclearTurn as error:
            loss = find_loss(messages[error.index], error.index, chat.text) or Loss("place", error.index)
            return Layout(chat.text, False, 0, [], loss=loss)
        return self._layout(draft, chat, turns, asked)

    def _layout(self, draft: SequenceSpec, chat: Chat, turns: list[Turn], asked: str | None) -> Layout:
        """Build the layout of a conversation in which ``turns`` are trained, after ``asked``, the prompt."""
        loss = next((found for turn in turns if (found := _loss(turn, chat))), None)
        loss = loss or self._unread(draft, chat.messages, chat.text, chat.origin)
        spans = self._spans(draft, chat, with_scaffold(turns, chat) if self.settings.learn_scaffold else turns)
        mismatch = asked is not None and not chat.text.startswith(asked)
        if asked is not None and not mismatch:
            boundary = len(asked)
        else:
            boundary = next((turn.start for turn in turns if turn.index >= len(draft.prompt or [])), 0)
        if draft.train_on == "all":
            spans = [(0, len(chat.text))]
        marks = _step_marks(draft, chat.text, turns[0].start if turns else 0, chat.origin)
        return Layout(
            chat.text,
            False,
            boundary,
            spans,
            marks=marks,
            labels=draft.labels or [],
            mismatch=mismatch,
            loss=loss,
            opener=self._opener(draft, chat, turns),
        )

    def _unread(self, draft: SequenceSpec, messages: Messages, text: str, origin: str) -> Loss | None:
        """Return what the template does not show the model: a system prompt, tools."""
        if draft.tools and not self._shows_tools(draft, origin):
            return Loss("tools", 0, str((draft.tools[0].get("function") or draft.tools[0]).get("name")))
        return find_unread(messages, text)

    def _shows_tools(self, draft: SequenceSpec, origin: str) -> bool:
        """Return whether tools change a rendered question; a refusal by the template counts as a change."""
        key = self._key(draft)
        if key not in self._shown:
            asked = self._known(draft, origin)[0].adapted([{"role": "user", "content": "a"}])
            try:
                bare = self.render(asked, None, origin, True, draft.template_kwargs)
                self._shown[key] = self._rendered(asked, draft, origin, True) != bare
            except DataError:
                self._shown[key] = True
        return self._shown[key]

    def _opener(self, draft: SequenceSpec, chat: Chat, turns: list[Turn]) -> str | None:
        """Return the opener of the next message, if the last answer has no end of its own; None after steps."""
        if not turns or turns[-1].end > turns[-1].content_end or turns[-1].end < len(chat.text.rstrip()) or draft.steps:
            return None
        key = f"{self._key(draft)} {bool(chat.messages[-1].get('tool_calls'))}"
        if key not in self._openers:
            self._openers[key] = next_opener(chat)
        return self._openers[key]

    def _spans(self, draft: SequenceSpec, chat: Chat, turns: list[Turn]) -> list[Span]:
        """Return the trained parts of the turns: all, or those in the template's own generation blocks."""
        template = self.override or self.tokenizer.get_chat_template(None, tools=draft.tools)
        if not turns or not _MARKERS.search(template):
            return [(turn.start, turn.end) for turn in turns]
        marked: Any = render_jinja_template(
            [chat.messages],
            tools=draft.tools,  # type: ignore[arg-type]  # schemas are one kind of tool
            chat_template=template,
            return_assistant_tokens_mask=True,
            **{**self.tokenizer.special_tokens_map, **self._kwargs(draft)},
        )
        return within_marks(turns, marked[1][0])


def _loss(turn: Turn, chat: Chat) -> Loss | None:
    if turn.exact:
        return None
    return find_loss(chat.messages[turn.index], turn.index, chat.text[turn.start : turn.content_end])


def _special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Compile a pattern for one special token with white space before it; it matches nothing without special tokens."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    names = {str(token) for token in added} | set(getattr(tokenizer, "all_special_tokens", []))
    options = "|".join(re.escape(name) for name in sorted(filter(str.strip, names), key=len, reverse=True))
    return re.compile(rf"\s*({options or '(?!)'})")


def _parsed(value: str) -> Any:
    """Parse a template variable: JSON if it is valid, else the text."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def _step_marks(draft: SequenceSpec, text: str, boundary: int, origin: str) -> list[int]:
    if not draft.steps:
        return []
    marks = []
    position = boundary
    for number, step in enumerate(draft.steps, 1):
        stripped = step.strip()
        place = text.find(stripped, position)
        if place < 0:
            raise DataError(
                f"{origin}: the chat template rewrites step {number} ({short(stripped)}), so its end is unknown. "
                "Give a template that writes the text as it is, with --chat-template FILE."
            )
        position = place + len(stripped)
        # The line break that ends the step, if the template kept it.
        position += text.startswith("\n", position)
        marks.append(position)
    return marks


def _as_messages(draft: SequenceSpec, reader: ImageReader | None) -> SequenceSpec:
    """Turn a plain-text prompt and answer into a user and an assistant message, with the prompt's images first."""
    answer = draft.completion
    if isinstance(answer, str):
        answer = [{"role": "assistant", "content": answer}]
    content: Any = draft.prompt
    if draft.places and reader is not None and reader.placeholder not in str(content):
        parts = [{"type": "image", "place": place} for place in draft.places]
        content = [*parts, {"type": "text", "text": content}]
    return replace(draft, prompt=[{"role": "user", "content": content}], completion=answer)


def _read_template(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"chat-template '{path}': cannot be read ({error}). Expected a Jinja file.") from None
