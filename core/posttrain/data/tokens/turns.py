"""Tokens between two turns of the model, and the message of a turn.

Sampled tokens stay as they are, never made again from text. What the chat template writes after a turn, and how it
renders the environment's answer, is found by rendering a conversation with and without that answer.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from collections.abc import Sequence as List
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from posttrain.contract.views import Sequence
from posttrain.data.tokens.forms import Forms, find_forms
from posttrain.data.tokens.images import expanded, places_in
from posttrain.data.tokens.templates import Layout, Templates
from posttrain.environments import parsing
from posttrain.errors import DataError
from posttrain.settings import DataSettings

Message = dict[str, Any]
#: Sentinel for the model's words, which no tokenizer, template or person would write.
_SAID = "Qx7said7xQ"
_KNOWN = {"name": "known_name", "arguments": {"known_argument": "1"}}


class Turns:
    """Parses and continues conversations as the tokenizer's chat template writes them."""

    def __init__(self, tokenizer: Any, settings: DataSettings, stop_ids: set[int], tools: list[dict[str, Any]] | None):
        self.tokenizer = tokenizer
        self.templates = Templates(tokenizer, settings)
        self.stop_ids = stop_ids
        self.tools: list[dict[str, Any]] | None = None
        self.variables: dict[str, Any] | None = None
        """A row's variables of the template, which override the run's."""
        self.has_tool_role = False
        self.reader = self.templates.reader
        self._form: Callable[[str], parsing.Parsed] = parsing.DEFAULT[1]
        self._forms: Forms | None = None
        if not self.templates.source:
            return  # episodes of plain text
        self.tools = tools if tools and self.shows_tools(tools) else None
        self._forms = find_forms(lambda messages: self.templates.render(messages, self.tools, "this episode"))
        self.has_tool_role = self._has_tool_role()
        self._form = self._call_form()

    def of_row(self, row: dict[str, Any]) -> Turns:
        """Return the same for a row, which may have a column ``chat_template_kwargs``."""
        if not row.get("chat_template_kwargs"):
            return self
        own = copy.copy(self)
        own.variables = dict(row["chat_template_kwargs"])
        return own

    def shows_tools(self, tools: list[dict[str, Any]]) -> bool:
        """Return whether the template renders tools."""
        asked = [{"role": "user", "content": "a"}]
        try:
            return self._text(asked, tools) != self._text(asked, None)
        except DataError:
            return False

    def message(self, ids: Tensor) -> Message:
        """Parse the sampled tokens ``(t,)``: content, reasoning and calls, as templates take them."""
        text = self._written(ids)
        if getattr(self.tokenizer, "response_schema", None):
            try:
                found = self.tokenizer.parse_response(text)
                return found | {"role": "assistant", "content": found.get("content") or ""}
            except (ValueError, TypeError, KeyError, AttributeError):
                pass  # text in another form than the tokenizer's own may still hold calls
        return parsing.parse(text, self._form)

    def between(
        self, history: list[Message], said: Message, answers: list[Message], ids: Tensor, sources: List[Any] = ()
    ) -> Sequence:
        """Return the tokens from the end of a turn, sampled as ``ids``, to the start of the next one.

        ``history`` is the conversation before the turn, ``said`` the turn, ``answers`` the environment's messages, all
        as ``plain`` gives them; ``sources`` the images of the whole conversation. Raises DataError where the template
        refuses them, or leaves an image out.
        """
        stop = self.tokenizer.decode(ids[-1:]) if len(ids) and int(ids[-1]) in self.stop_ids else None
        said = {name: value for name, value in said.items() if name != "reasoning_content"}
        for shown in (said, said | {"content": ""}) if said.get("tool_calls") else (said,):
            found = self._appended(history, shown, answers, stop)
            if found is not None:
                return self._shown(found, answers, sources)
        return self._shown(self._behind_sentinel(history, said, answers, stop), answers, sources)

    def _appended(self, history: list[Message], said: Message, answers: list[Message], stop: str | None) -> str | None:
        """Return the text between if the template only appends; None if it rewrites the turn, or nothing ended it."""
        before = self._text(history, self.tools, ask=True)
        alone = self._text([*history, said], self.tools)
        whole = self._text([*history, said, *answers], self.tools, ask=True)
        if stop is None or not whole.startswith(alone):
            return None
        shared = next((i for i, (a, b) in enumerate(zip(before, alone, strict=False)) if a != b), len(before))
        place = alone.find(stop, shared) if said.get("tool_calls") is None else alone.rfind(stop, shared)
        rest = whole[len(alone) :]
        if place >= 0:
            return alone[place + len(stop) :] + rest
        return rest.removeprefix(stop)  # some end a turn with the first token of the next one

    def _behind_sentinel(self, history: list[Message], said: Message, answers: list[Message], stop: str | None) -> str:
        """Return the text after a turn whose words are replaced by a sentinel."""
        whole = self._text([*history, said | {"content": _SAID}, *answers], self.tools, ask=True)
        place = whole.rfind(_SAID)
        if place < 0:
            raise DataError(
                "the chat template leaves out what the model said in an earlier turn; no episode can go on."
            )
        rest = whole[place + len(_SAID) :]
        if said.get("tool_calls"):  # calls are written after the words, and were sampled
            same = self._text([*history, said | {"content": _SAID}], self.tools)
            calls = same[same.rfind(_SAID) + len(_SAID) :]
            calls = calls[: calls.rfind(stop)] if stop and stop in calls else calls
            rest = rest[next((i for i, (a, b) in enumerate(zip(rest, calls, strict=False)) if a != b), len(calls)) :]
        if stop is None or rest.startswith(stop):
            return rest.removeprefix(stop or "")
        first = self._ids(rest)[:1]  # another token ends a turn in the middle than the last one
        special = len(first) and int(first[0]) in self.tokenizer.all_special_ids
        return rest.removeprefix(self.tokenizer.decode(first)) if special else rest

    def opening(self, messages: list[Message], sources: List[Any] = ()) -> Sequence:
        """Return the tokens of a prompt, with its images."""
        return self._shown(self._text(messages, self.tools, ask=True), messages, sources)

    def anew(self, messages: list[Message], ids: Tensor, sources: List[Any] = ()) -> Sequence | None:
        """Return the conversation's tokens if the template renders it unlike ``ids`` ``(n,)``, else None.

        Placeholders of images that the model wrote itself are left out of its earlier turns.
        """
        if self.reader is not None:
            messages = [self._unmarked(one) if one["role"] == "assistant" else one for one in messages]
        layout = self._expanded(self._text(messages, self.tools, ask=True), messages, sources)
        same = layout.text == self.tokenizer.decode(ids, skip_special_tokens=False)
        return None if same else self._tokens(layout)

    def text(self, messages: list[Message], sources: List[Any] = ()) -> Sequence:
        """Return the tokens of messages in an episode of plain text: their texts, with a placeholder for each image."""
        mark = "" if self.reader is None else self.reader.placeholder
        text = "".join(_plain_text(one.get("content"), mark) for one in messages)
        return self._shown(text, messages, sources)

    def rewrites(self, history: list[Message], said: Message, answers: list[Message]) -> bool:
        """Return whether the template renders an earlier turn differently once the conversation continues."""
        try:
            before = self._text([*history, said], self.tools)
            after = self._text([*history, said, *answers], self.tools, ask=True)
        except DataError:
            return False
        return not after.startswith(before.rstrip())

    def plain(self, said: Message, answers: list[Message], ids: Tensor) -> tuple[Message, list[Message]]:
        """Return a turn, sampled as ``ids``, and its answers in the template's own roles; unparsed calls as text."""
        unread = any("error" in one for one in said.get("tool_calls", []))
        shown = any(places_in([one]) for one in answers if one.get("role") == "tool")
        as_text = unread or not self.has_tool_role or (shown and not self._tools_show)
        if said.get("tool_calls") and as_text:
            said = {"role": "assistant", "content": self._written(ids)}
        if as_text:
            answers = [_as_user(one) if one.get("role") == "tool" else one for one in answers]
            answers = _joined(answers)
        return said, answers

    def _written(self, ids: Tensor) -> str:
        kept = ids[:-1] if len(ids) and int(ids[-1]) in self.stop_ids else ids
        text: str = self.tokenizer.decode(kept, skip_special_tokens=False)
        return text

    def _text(self, messages: list[Message], tools: Any, ask: bool = False) -> str:
        if self._forms is not None:
            messages = self._forms.adapted(messages)
        return self.templates.render(messages, tools, "this episode", ask, self.variables)

    def _ids(self, text: str) -> Tensor:
        return torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)

    def _shown(self, text: str, messages: list[Message], sources: List[Any]) -> Sequence:
        """Return the tokens of a text with the images of ``messages``. Raises DataError where it lacks one of them."""
        return self._tokens(self._expanded(text, messages, sources))

    def _expanded(self, text: str, messages: list[Message], sources: List[Any]) -> Layout:
        layout = Layout(text, False, len(text), [])
        if self.reader is None:
            return layout
        places = [place for message in messages for place in places_in([message])]
        return expanded(layout, list(sources), places, self.reader, "this episode")

    def _tokens(self, layout: Layout) -> Sequence:
        ids = self._ids(layout.text)
        return Sequence(ids, torch.zeros(len(ids), dtype=torch.bool), images=tuple(layout.images))

    def _unmarked(self, message: Message) -> Message:
        assert self.reader is not None
        content = message.get("content")
        return message | {"content": self.reader.unmarked(content)} if isinstance(content, str) else message

    def _has_tool_role(self) -> bool:
        text = self._with_result(_SAID)
        return _SAID in text and "known_name" in text

    @cached_property
    def _tools_show(self) -> bool:
        """Whether the template writes the placeholder of an image in a tool's message."""
        mark = "" if self.reader is None else self.reader.placeholder
        return self.reader is not None and mark in self._with_result([{"type": "image"}])

    def _with_result(self, content: Any) -> str:
        """Return a conversation with a call and the tool's message; empty where the template refuses it."""
        call = {"type": "function", "id": "call00000", "function": _KNOWN}
        talk: list[Message] = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "name": "known_name", "tool_call_id": "call00000", "content": content},
        ]
        try:
            return self._text(talk, self.tools, ask=True)
        except DataError:
            return ""

    def _call_form(self) -> Callable[[str], parsing.Parsed]:
        call = {"type": "function", "id": "call00000", "function": _KNOWN}
        asked: Message = {"role": "user", "content": "a"}
        talk = [asked, {"role": "assistant", "content": "", "tool_calls": [call]}]
        try:
            before = self._text(talk[:1], None, ask=False)
            return parsing.parser_of(self._text(talk, None)[len(before) :])
        except DataError:
            return parsing.DEFAULT[1]


def describe_tools(tools: list[dict[str, Any]]) -> str:
    """Return a system message on tools, for templates without them, which asks for calls in the most common form."""
    lines = "\n".join(json.dumps(one) for one in tools)
    return (
        "You can call these functions:\n<tools>\n" + lines + "\n</tools>\n"
        "To call one, write its name and arguments as JSON:\n"
        '<tool_call>\n{"name": "NAME", "arguments": {"ARGUMENT": "VALUE"}}\n</tool_call>'
    )


def _as_user(message: Message) -> Message:
    return {"role": "user", "content": _run_together("<tool_response>\n", message.get("content"), "\n</tool_response>")}


def _run_together(*contents: Any) -> Any:
    """Concatenate contents of messages: a text, or a list of parts where one of them is a list."""
    if not any(isinstance(one, list) for one in contents):
        return "".join(str(one or "") for one in contents)
    listed = (one if isinstance(one, list) else [{"type": "text", "text": one}] for one in contents if one)
    return [part for parts in listed for part in parts]


def _plain_text(content: Any, mark: str) -> str:
    """Return a content's text, with ``mark`` in place of each image."""
    if not isinstance(content, list):
        return str(content or "")
    return "".join(mark if part.get("type") == "image" else str(part.get("text", "")) for part in content)


def _joined(messages: list[Message]) -> list[Message]:
    """Join consecutive messages of one role: many templates require alternating roles."""
    found: list[Message] = []
    for message in messages:
        if found and found[-1]["role"] == message["role"] == "user":
            found[-1] = found[-1] | {"content": _run_together(found[-1]["content"], "\n", message["content"])}
        else:
            found.append(message)
    return found
