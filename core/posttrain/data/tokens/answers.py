"""Positions of the assistant's turns in a rendered conversation, found by rendering it with other contents.

An answer is never searched for. A conversation is rendered once more with marks instead of its plain answers; the text
between the marks is the template's, and the rendered row must be exactly these pieces with the answers between them. A
turn with reasoning or calls is compared with the same conversation in which that turn is plain. What both share before
the mark is the template's own and is not trained.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from posttrain.contract.messages import message_text
from posttrain.data.tokens.forms import Message, reasoning_of
from posttrain.errors import DataError

_FIRST, _LAST = 0xE000, 0xF8FF
"""Private-use characters: no template writes them, and hardly any row."""


class UnclearTurn(Exception):
    """A turn whose text depends on what follows, so that its place is unknown."""

    def __init__(self, index: int):
        super().__init__(index)
        self.index = index


@dataclass(frozen=True)
class Turn:
    """One turn of the assistant, in character positions of the rendered conversation."""

    index: int
    start: int
    """Start: after all that the template writes before any answer."""
    content_end: int
    """End of the message's own text."""
    end: int
    """End of the token that ends the turn, if there is one."""
    exact: bool
    """Whether its content is there verbatim, except for white space at its ends."""


@dataclass
class Chat:
    """One conversation in the template's forms, and how to render variants of it."""

    messages: list[Message]
    text: str
    """Rendered conversation."""
    render: Callable[..., str]
    """``render(messages, ask=False)``; raises DataError where the template refuses them."""
    special: re.Pattern[str]
    """Matches one special token, its group, with white space before it."""
    origin: str

    def tried(self, messages: list[Message], ask: bool = False) -> str | None:
        """Render the messages; None where the template refuses them."""
        try:
            return self.render(messages, ask) if messages else None
        except DataError:
            return None

    def with_plain(self, index: int, mark: str) -> list[Message]:
        """Return the conversation with a plain answer, ``mark``, in place of one message."""
        return [*self.messages[:index], self.plain(index, mark), *self.messages[index + 1 :]]

    def plain(self, index: int, mark: str) -> Message:
        """Return a plain answer in the form of the message's own content."""
        parts = isinstance(self.messages[index].get("content"), list)
        return {"role": "assistant", "content": [{"type": "text", "text": mark}] if parts else mark}


def find_turns(chat: Chat, wanted: list[int], asked: str | None = None, ends: set[str] | None = None) -> list[Turn]:
    """Find the turns of the messages at ``wanted``, in order.

    ``asked`` is the conversation before the only wanted turn with the beginning of an answer, where it is known.
    ``ends`` are known ends of this template's turns; found ones are added. Raises UnclearTurn, and DataError where the
    template writes text after the end of the last turn, or an answer more than once.
    """
    ends = set() if ends is None else ends
    plain = [index for index in wanted if is_plain(chat.messages[index])]
    found: dict[int, Turn] = {}
    if asked is not None and plain == wanted == [len(chat.messages) - 1]:
        found = _directly(chat, plain[0], asked, ends)
    if plain and not found:
        found = _between_marks(chat, plain, ends)
    turns: list[Turn] = []
    for index in wanted:
        turn = found.get(index) or _alone(chat, index, ends)
        if turn.start < (turns[-1].end if turns else 0) or turn.end < turn.start:
            raise UnclearTurn(index)
        turns.append(turn)
    return turns


def is_plain(message: Message) -> bool:
    """Return whether a message is only content, and not empty."""
    return bool(message_text(message).strip()) and not message.get("tool_calls") and reasoning_of(message) is None


def _mark(chat: Chat, number: int = 0) -> str:
    """Return text that does not occur in the conversation, with ends unlike anything in it."""
    free = (chr(code) for code in range(_FIRST, _LAST) if chr(code) not in chat.text)
    return f"{(edge := next(free))}{number}{edge}"


def _directly(chat: Chat, index: int, asked: str, ends: set[str]) -> dict[int, Turn]:
    """Find the last turn if it is exactly the request for an answer, the content, and a known end."""
    if not chat.text.startswith(asked):
        return {}
    for content in _trimmed(message_text(chat.messages[index])):
        stop = len(asked) + len(content)
        if chat.text.startswith(content, len(asked)) and chat.text[stop:] in ends:
            return {index: _closed(chat, index, len(asked), stop, ends)}
    return {}


def _between_marks(chat: Chat, plain: list[int], ends: set[str]) -> dict[int, Turn]:
    """Find plain turns by one rendering with marks in their places; none unless the pieces are the whole text."""
    marks = [_mark(chat, number) for number in range(len(plain))]
    messages = list(chat.messages)
    for index, mark in zip(plain, marks, strict=True):
        messages[index] = {**messages[index], **chat.plain(index, mark)}
    rendered = chat.tried(messages)
    _refuse_copies(chat, rendered, marks)
    pieces = _pieces(rendered, marks)
    if pieces is None or not chat.text.startswith(pieces[0]):
        return {}
    places, at = [], len(pieces[0])
    for index, piece in zip(plain, pieces[1:], strict=True):
        last = index == plain[-1]
        contents = (c for c in _trimmed(message_text(chat.messages[index])) if chat.text.startswith(c, at))
        fits = (c for c in contents if _follows(chat.text, at + len(c), piece, last))
        content = next(fits, None)
        if content is None:
            return {}
        places.append((index, at, at + len(content)))
        at += len(content) + len(piece)
    if plain[-1] == len(chat.messages) - 1:
        ends.add(pieces[-1])
    return {index: _closed(chat, index, start, stop, ends) for index, start, stop in places}


def _refuse_copies(chat: Chat, rendered: str | None, marks: list[str]) -> None:
    copies = max(rendered.count(mark) for mark in marks) if rendered else 1
    if copies > 1:
        raise DataError(
            f"{chat.origin}: the chat template writes an answer {copies} times. Expected once: give another with "
            "--chat-template FILE."
        )


def _follows(text: str, at: int, piece: str, last: bool) -> bool:
    return text[at:] == piece if last else text.startswith(piece, at)


def _pieces(rendered: str | None, marks: list[str]) -> list[str] | None:
    """Return the texts before, between and after the marks; None unless each occurs once, in order."""
    if rendered is None:
        return None
    pieces = []
    for mark in marks:
        piece, found, rendered = rendered.partition(mark)
        if not found or mark in rendered:
            return None
        pieces.append(piece)
    return [*pieces, rendered]


def _trimmed(content: str) -> list[str]:
    """Return the content as templates may write it: as it is, or without white space at one or both ends."""
    return list(dict.fromkeys([content, content.rstrip(), content.lstrip(), content.strip()]))


def _known_ends(chat: Chat, index: int, ends: set[str]) -> set[str]:
    """Return ``ends``, with at least the template's text after a plain last answer at ``index``."""
    if not ends:
        mark = _mark(chat)
        pieces = _pieces(chat.tried([*chat.messages[:index], chat.plain(index, mark)]), [mark])
        ends.add(pieces[1] if pieces else "")
    return ends


def _ending(chat: Chat, usual: str) -> str:
    """Return the part of ``usual``, the text after an answer, that ends the turn: special tokens, or else all of it."""
    found = chat.special.match(usual)
    if found is None:
        return usual.rstrip()
    end = found.end()
    while (more := chat.special.match(usual, end)) and more.start(1) == end:
        end = more.end()
    return usual[:end]


def _closed(chat: Chat, index: int, start: int, content_end: int, ends: set[str], exact: bool = True) -> Turn:
    """Return the turn with its end: the template's text after a last answer, or another token."""
    text = chat.text
    if index == len(chat.messages) - 1:
        ending = _ending(chat, text[content_end:])
        _refuse_text_behind(chat, ending, text[content_end + len(ending) :])
        return Turn(index, start, content_end, content_end + len(ending), exact)
    usual = [_ending(chat, end) for end in sorted(_known_ends(chat, index, ends), key=len, reverse=True)]
    for ending in filter(None, usual):
        if text.startswith(ending, content_end):
            return Turn(index, start, content_end, content_end + len(ending), exact)
    if any(usual) and (here := chat.special.match(text, content_end)):
        # The turn ends with another token where something follows.
        return Turn(index, start, content_end, here.end(), exact)
    return Turn(index, start, content_end, content_end, exact)


def _refuse_text_behind(chat: Chat, ending: str, behind: str) -> None:
    left = chat.special.sub("", behind).strip()
    if left and chat.special.search(ending):
        raise DataError(
            f"{chat.origin}: the chat template writes {left[:60]!r} behind the token that ends the last answer. "
            "Expected nothing there but white space and special tokens: give another with --chat-template FILE."
        )


def _alone(chat: Chat, index: int, ends: set[str]) -> Turn:
    """Find a turn with reasoning, calls or no content by comparing it with a plain one in its place."""
    mark = _mark(chat)
    pieces = _pieces(chat.tried(chat.with_plain(index, mark)), [mark])
    before = chat.messages[:index]
    asked = chat.tried(before, ask=True)
    template = pieces[0] if pieces else None
    if template is not None and _is_empty(chat.messages[index]) and not chat.text.startswith(template):
        template = template.rstrip()  # the line break before a text is missing where there is none
    if template is not None and chat.text.startswith(template):
        start = len(template)
    elif asked is not None and chat.text.startswith(asked):
        start = len(asked)
    else:
        # The common prefix of the request for an answer and the answer, if longer than the conversation before it.
        start = -1 if asked is None else shared(asked, chat.text)
        if start < len(chat.tried(before) or ""):
            raise UnclearTurn(index)
    return _ended(chat, index, start, pieces, ends)


def _ended(chat: Chat, index: int, start: int, pieces: list[str] | None, ends: set[str]) -> Turn:
    text, usual = chat.text, pieces[1] if pieces else ""
    if index == len(chat.messages) - 1:
        if usual and text.endswith(usual) and len(text) - len(usual) >= start:
            ends.add(usual)
            return _closed(chat, index, start, len(text) - len(usual), ends, exact=False)
        end = len(text.rstrip())
        return Turn(index, start, end, end, exact=False)
    done = chat.tried(chat.messages[: index + 1])
    if done is not None and chat.text.startswith(done := done.rstrip()) and len(done) >= start:
        ending = _ending(chat, usual)
        content_end = len(done) - len(ending) if done.endswith(ending) else len(done)
        return Turn(index, start, max(start, content_end), len(done), exact=False)
    if usual and text.endswith(usual) and _stands_alone(chat, index, len(text) - len(usual)):
        return _closed(chat, index, start, len(text) - len(usual), ends, exact=False)
    raise UnclearTurn(index)


def next_opener(chat: Chat) -> str | None:
    """Return the special token that opens the message after the last one, directly after its text; None without one.

    After a call a tool answers, otherwise the user.
    """
    index, mark = len(chat.messages) - 1, _mark(chat)
    last = chat.messages[index]
    if calls := last.get("tool_calls"):
        answer = {"role": "tool", "content": "", "tool_call_id": calls[0].get("id"), "name": _called_name(calls[0])}
        followed = chat.tried([*chat.messages, answer]) or ""
        behind = followed[len(chat.text) :] if followed.startswith(chat.text) else ""
    else:
        # A plain answer in its place: the next message changes how some templates write reasoning.
        asking = {**chat.plain(index, ""), "role": "user"}
        followed = chat.tried([*chat.messages[:index], chat.plain(index, mark), asking]) or ""
        behind = followed.partition(mark)[2]
    found = chat.special.match(behind)
    return found[1] if found else None


def _called_name(call: Message) -> Any:
    return (call.get("function") or call).get("name")


def _stands_alone(chat: Chat, index: int, end: int) -> bool:
    """Return whether nothing before ``end`` belongs to the message after ``index``: some templates move results."""
    following = {**chat.messages[index + 1], "content": chat.plain(index + 1, _mark(chat))["content"]}
    other = chat.tried([*chat.messages[: index + 1], following, *chat.messages[index + 2 :]])
    return other is not None and other.startswith(chat.text[:end])


def _is_empty(message: Message) -> bool:
    return not message_text(message).strip() and not message.get("tool_calls") and reasoning_of(message) is None


def shared(first: str, second: str) -> int:
    """Return the length of the common prefix."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))


def within_marks(turns: list[Turn], marks: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the parts of the turns in the template's own ``{% generation %}`` blocks, with their end tokens."""
    found = []
    for turn in turns:
        if turn.content_end == turn.start:  # nothing was said, and an empty block is not reported
            found.append((turn.start, turn.end))
            continue
        inside = [(max(a, turn.start), b) for a, b in marks if b >= turn.start and a <= turn.content_end]
        for start, end in inside:
            found.append((start, turn.end if end >= turn.content_end else end))
    return [(start, end) for start, end in found if end > start]


def with_scaffold(turns: list[Turn], chat: Chat) -> list[Turn]:
    """Extend the turns by what the template writes before every answer, from the end of its request for one."""
    wider = []
    for turn in turns:
        before: list[Any] = chat.messages[: turn.index]
        asked = chat.tried(before, ask=True)
        start = turn.start if asked is None else shared(asked, chat.text)
        fits = asked is not None and len(chat.tried(before) or "") <= start <= turn.start
        wider.append(replace(turn, start=start) if fits else turn)
    return wider
