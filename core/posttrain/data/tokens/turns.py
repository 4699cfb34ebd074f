"""Tokens between two turns of the model, and what a turn says.

What was sampled stays as it is: no token is made again from text. What the chat template puts behind a turn, and how it
shows what an environment answers, is found by rendering a conversation with and without that answer.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from posttrain.data.tokens.forms import Forms, find_forms
from posttrain.data.tokens.templates import Templates
from posttrain.environments import parsing
from posttrain.errors import DataError
from posttrain.settings import DataSettings

Message = dict[str, Any]
#: Stands for what the model said: one word that no tokenizer, template or person would write.
_SAID = "Qx7said7xQ"
_KNOWN = {"name": "known_name", "arguments": {"known_argument": "1"}}


class Turns:
    """Reads and continues conversations as the tokenizer's chat template writes them."""

    def __init__(self, tokenizer: Any, settings: DataSettings, stop_ids: set[int], tools: list[dict[str, Any]] | None):
        self.tokenizer = tokenizer
        self.templates = Templates(tokenizer, settings)
        self.stop_ids = stop_ids
        self.tools: list[dict[str, Any]] | None = None
        self.variables: dict[str, Any] | None = None
        """What a row tells the template, before what the run tells it."""
        self.has_tool_role = False
        self._form: Callable[[str], parsing.Parsed] = parsing.DEFAULT[1]
        self._forms: Forms | None = None
        if not self.templates.source:
            return  # episodes of plain text
        self.tools = tools if tools and self.shows_tools(tools) else None
        self._forms = find_forms(lambda messages: self.templates.render(messages, self.tools, "this episode"))
        self.has_tool_role = self._has_tool_role()
        self._form = self._call_form()

    def of_row(self, row: dict[str, Any]) -> Turns:
        """The same for a row, which may have a column ``chat_template_kwargs``."""
        if not row.get("chat_template_kwargs"):
            return self
        own = copy.copy(self)
        own.variables = dict(row["chat_template_kwargs"])
        return own

    def shows_tools(self, tools: list[dict[str, Any]]) -> bool:
        """Whether the template tells the model of tools."""
        asked = [{"role": "user", "content": "a"}]
        try:
            return self._text(asked, tools) != self._text(asked, None)
        except DataError:
            return False

    def message(self, ids: Tensor) -> Message:
        """What the sampled tokens ``(t,)`` say: content, reasoning and calls, as templates take them."""
        text = self._written(ids)
        if getattr(self.tokenizer, "response_schema", None):
            try:
                found = self.tokenizer.parse_response(text)
                return found | {"role": "assistant", "content": found.get("content") or ""}
            except (ValueError, TypeError, KeyError, AttributeError):
                pass  # what is not of the tokenizer's own form may still hold calls
        return parsing.parse(text, self._form)

    def between(self, history: list[Message], said: Message, answers: list[Message], ids: Tensor) -> Tensor:
        """Tokens ``(n,)`` from the end of a turn, sampled as ``ids``, to where the next one begins.

        ``history`` is the conversation before the turn, ``said`` the turn, ``answers`` the environment's messages,
        all as ``plain`` gives them. Raises DataError where the template refuses them.
        """
        stop = self.tokenizer.decode(ids[-1:]) if len(ids) and int(ids[-1]) in self.stop_ids else None
        said = {name: value for name, value in said.items() if name != "reasoning_content"}
        for shown in (said, said | {"content": ""}) if said.get("tool_calls") else (said,):
            found = self._appended(history, shown, answers, stop)
            if found is not None:
                return self._ids(found)
        return self._ids(self._behind_sentinel(history, said, answers, stop))

    def _appended(self, history: list[Message], said: Message, answers: list[Message], stop: str | None) -> str | None:
        """The text between where the template only appends; None where it writes the turn anew, or nothing ended it."""
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
        """The text behind a turn whose words are replaced by one that can be found again."""
        whole = self._text([*history, said | {"content": _SAID}, *answers], self.tools, ask=True)
        place = whole.rfind(_SAID)
        if place < 0:
            raise DataError(
                "the chat template leaves out what the model said in an earlier turn; no episode can go on."
            )
        rest = whole[place + len(_SAID) :]
        if said.get("tool_calls"):  # calls are written behind the words, and were sampled
            same = self._text([*history, said | {"content": _SAID}], self.tools)
            calls = same[same.rfind(_SAID) + len(_SAID) :]
            calls = calls[: calls.rfind(stop)] if stop and stop in calls else calls
            rest = rest[next((i for i, (a, b) in enumerate(zip(rest, calls, strict=False)) if a != b), len(calls)) :]
        if stop is None or rest.startswith(stop):
            return rest.removeprefix(stop or "")
        first = self._ids(rest)[:1]  # another token ends a turn in the middle than the one that ends the last
        special = len(first) and int(first[0]) in self.tokenizer.all_special_ids
        return rest.removeprefix(self.tokenizer.decode(first)) if special else rest

    def opening(self, messages: list[Message]) -> Tensor:
        """Tokens ``(p,)`` of a prompt."""
        return self._ids(self._text(messages, self.tools, ask=True))

    def anew(self, messages: list[Message], ids: Tensor) -> Tensor | None:
        """Tokens ``(p,)`` of the conversation where the template shows it otherwise than ``ids`` ``(n,)`` say it."""
        text = self._text(messages, self.tools, ask=True)
        return None if text == self.tokenizer.decode(ids, skip_special_tokens=False) else self._ids(text)

    def text(self, text: str) -> Tensor:
        """Tokens ``(n,)`` of plain text in the middle of an episode."""
        return self._ids(text)

    def rewrites(self, history: list[Message], said: Message, answers: list[Message]) -> bool:
        """Whether the template shows an earlier turn in another way once the conversation goes on."""
        try:
            before = self._text([*history, said], self.tools)
            after = self._text([*history, said, *answers], self.tools, ask=True)
        except DataError:
            return False
        return not after.startswith(before.rstrip())

    def plain(self, said: Message, answers: list[Message], ids: Tensor) -> tuple[Message, list[Message]]:
        """A turn, sampled as ``ids``, and its answers in the roles that the template knows; unread calls as text."""
        unread = any("error" in one for one in said.get("tool_calls", []))
        if said.get("tool_calls") and (unread or not self.has_tool_role):
            said = {"role": "assistant", "content": self._written(ids)}
        if unread or not self.has_tool_role:
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

    def _has_tool_role(self) -> bool:
        call = {"type": "function", "id": "call00000", "function": _KNOWN}
        talk: list[Message] = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "name": "known_name", "tool_call_id": "call00000", "content": _SAID},
        ]
        try:
            text = self._text(talk, self.tools, ask=True)
        except DataError:
            return False
        return _SAID in text and "known_name" in text

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
    """A system message that tells of tools, for templates that do not; calls are asked for in the commonest form."""
    lines = "\n".join(json.dumps(one) for one in tools)
    return (
        "You can call these functions:\n<tools>\n" + lines + "\n</tools>\n"
        "To call one, write its name and arguments as JSON:\n"
        '<tool_call>\n{"name": "NAME", "arguments": {"ARGUMENT": "VALUE"}}\n</tool_call>'
    )


def _as_user(message: Message) -> Message:
    return {"role": "user", "content": f"<tool_response>\n{message.get('content', '')}\n</tool_response>"}


def _joined(messages: list[Message]) -> list[Message]:
    """Messages of one role in a row as one: many templates want roles to alternate."""
    found: list[Message] = []
    for message in messages:
        if found and found[-1]["role"] == message["role"] == "user":
            found[-1] = found[-1] | {"content": f"{found[-1]['content']}\n{message['content']}"}
        else:
            found.append(message)
    return found
