"""Pictures of a row: where it names them, which stand in which sequence, and the text that stands for them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from posttrain.contract.images import WEB, Image, named
from posttrain.contract.messages import is_messages
from posttrain.data.convert import Row
from posttrain.data.values import MEDIA
from posttrain.errors import DataError, ModelError
from posttrain.network.image_reader import ImageReader, literal_places

if TYPE_CHECKING:
    from posttrain.data.tokens.templates import Layout
    from posttrain.settings import DataSettings

#: Columns with a row's pictures; parts of messages without one of their own take theirs from here, in order.
COLUMNS = ("images", "image")
#: Types of parts that are pictures, and keys under which a part or a column has what it names.
_PARTS = ("image", "image_url")
_KEYS = ("image", "bytes", "base64", "path", "url", "image_url")
#: What only stands in columns, and what those and parts are called in an error.
_OTHERS = ("videos", "video", "audios", "audio")
_AUDIO = ("audio", "input_audio", "audios")


@dataclass
class Pictures:
    """The pictures of one row, in the order in which sequences take them."""

    origin: str
    settings: DataSettings
    waiting: list[Any] = field(default_factory=list)
    """Of the columns, not yet taken by a part."""
    sources: list[Any] = field(default_factory=list)
    """All that have been taken."""

    def taken(self, value: Any) -> dict[str, Any]:
        """A part of a message in the form of templates, its picture entered among the sources."""
        source = _source_of(value)
        if source is None:
            if not self.waiting:
                raise DataError(
                    f"{self.origin}: a message has an image part without an image, and the row's column 'images' "
                    "holds no more. Expected one for each such part."
                )
            source = self.waiting.pop(0)
        self.sources.append(self.located(source))
        return {"type": "image", "place": len(self.sources) - 1}

    def located(self, source: Any) -> Any:
        """A source as it will be opened: paths from where they begin, addresses only where they are asked for."""
        if not isinstance(source, str) or source.startswith("data:"):
            return source
        if source.startswith(WEB):
            if not self.settings.image_urls:
                raise DataError(
                    f"{self.origin}: image {named(source)} is an address. Expected a path, bytes or a data URL; to "
                    "fetch addresses while the data are read: --image-urls"
                )
            return source
        path = source.removeprefix("file://")
        folder = self.settings.image_folder
        return path if folder is None or path.startswith(("/", "~")) else f"{folder.rstrip('/')}/{path}"


def with_pictures(row: Row, origin: str, settings: DataSettings) -> tuple[Row, list[Any]]:
    """The row with numbered parts in the place of its pictures, and what these name, by their numbers.

    Where no part of its messages is a picture, those of the columns stand at the beginning of what the user says first.
    Text has placeholders of its own: its row's pictures are those of the columns. Raises DataError.
    """
    column = next((row[name] for name in COLUMNS if row.get(name) is not None), None)
    waiting = [] if column is None else [_source_of(one) for one in (column if isinstance(column, list) else [column])]
    pictures, count = Pictures(origin, settings, waiting), len(waiting)
    columns = [name for name, value in row.items() if is_messages(value) and name != "tools"]
    if not waiting and not any(_parts_of(row[name]) for name in columns):
        return row, []
    first = next((name for name in ("prompt", "messages") if name in columns), None)
    if first is None:
        pictures.sources = [pictures.located(source) for source in pictures.waiting]
        return row, pictures.sources
    if waiting and not any(_parts_of(row[name]) for name in columns):
        row = row | {first: _at_the_beginning(row[first], count, origin)}
    order = [first, *(name for name in columns if name != first)]
    row = row | {name: [_message(message, pictures) for message in row[name]] for name in order}
    if pictures.waiting:
        raise DataError(
            f"{origin}: the row has {count} images and its messages {count - len(pictures.waiting)} image parts "
            "without one of their own. Expected as many of both, or no image part at all."
        )
    return row, pictures.sources


def places_in(messages: Any) -> list[int]:
    """Numbers of the pictures in messages, in order; none in text. Raises DataError for one inside another column."""
    parts = _parts_of(messages) if is_messages(messages) else []
    if any("place" not in part for part in parts):
        raise DataError("Image parts stand in a column of several samples or answers. Expected them in its prompt.")
    return [part["place"] for part in parts]


def refuse_media(row: Row, origin: str, reader: ImageReader | None) -> None:
    """Raise ModelError for what the model cannot be shown: audio and videos, pictures where it reads text alone."""
    found = next((name for name in _OTHERS if row.get(name)), None)
    kinds = [part.get("type") for value in row.values() if is_messages(value) for part in _media(value)]
    found = found or next((kind for kind in kinds if kind not in _PARTS), None)
    if found in _AUDIO or found == "audio":
        raise ModelError(
            f"{origin}: the row has '{found}', and audio is not supported: remove these rows or the column."
        )
    if found is not None:
        raise ModelError(f"{origin}: the row has '{found}', and videos are not supported: give frames as images.")
    if reader is not None:
        return
    found = next((name for name in COLUMNS if row.get(name)), None) or next(iter(kinds), None)
    if found is not None:
        raise ModelError(
            f"{origin}: the row has '{found}', but the model is loaded as a text model without an image processor. "
            "Remove these rows, or the column, from the data."
        )


def expanded(layout: Layout, sources: list[Any], places: list[int], reader: ImageReader, origin: str) -> Layout:
    """The layout with what its pictures become in the place of their placeholders; positions move along."""
    if layout.plain and places:
        layout = _arranged(layout, places, reader)
    found = literal_places(layout.text, reader.placeholder)
    if len(found) != len(places):
        raise DataError(
            f"{origin}: the text has {len(found)} placeholders '{reader.placeholder}' and {len(places)} images. "
            "Expected as many of both; in messages, image parts are turned into placeholders by the chat template."
        )
    if not found:
        return layout
    images, texts = zip(*(_read(reader, sources[place], place, origin) for place in places), strict=True)
    ends = [end for _, end in found]
    added = [0, *accumulate(len(text) - (end - start) for text, (start, end) in zip(texts, found, strict=True))]

    def moved(position: int) -> int:
        return position + added[sum(end <= position for end in ends)]

    pieces, last = [], 0
    for (start, end), text in zip(found, texts, strict=True):
        pieces += [layout.text[last:start], text]
        last = end
    return replace(
        layout,
        text="".join([*pieces, layout.text[last:]]),
        boundary=moved(layout.boundary),
        spans=[(moved(start), moved(end)) for start, end in layout.spans],
        marks=[moved(mark) for mark in layout.marks],
        images=images,
    )


def _arranged(layout: Layout, places: list[int], reader: ImageReader) -> Layout:
    """A plain prompt as the processor arranges it: PaliGemma's puts a token and a line break around it."""
    before = layout.text[: layout.boundary]
    after = reader.prompt(before, len(places))
    shift = len(after) - len(before)
    return replace(
        layout,
        text=after + layout.text[layout.boundary :],
        boundary=len(after),
        spans=[(start + shift if start else 0, end + shift) for start, end in layout.spans],
        marks=[mark + shift for mark in layout.marks],
    )


def _read(reader: ImageReader, source: Any, place: int, origin: str) -> tuple[Image, str]:
    try:
        return reader.read(source, place)
    except (DataError, ModelError) as error:
        raise type(error)(f"{origin}: {error}") from None


def _source_of(value: Any) -> Any:
    """What a part, a column's entry or a cell of a file names; None for a part that has nothing."""
    if not isinstance(value, dict):
        return value
    for key in _KEYS:
        found = value.get(key)
        if isinstance(found, dict):  # {"image_url": {"url": ...}}, {"image": {"bytes": ..., "path": ...}}
            return _source_of(found)
        if found is not None:
            return f"data:image/unknown;base64,{found}" if key == "base64" else found
    return None


def _media(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    contents = [message["content"] for message in messages if isinstance(message.get("content"), list)]
    return [part for parts in contents for part in parts if isinstance(part, dict) and part.get("type") in MEDIA]


def _parts_of(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [part for part in _media(messages) if part["type"] in _PARTS]


def _message(message: dict[str, Any], pictures: Pictures) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = [
        pictures.taken(part) if isinstance(part, dict) and part.get("type") in _PARTS else part for part in content
    ]
    return message | {"content": parts}


def _at_the_beginning(messages: list[dict[str, Any]], count: int, origin: str) -> list[dict[str, Any]]:
    """Messages with ``count`` parts for pictures before what the user says first."""
    for number, message in enumerate(messages):
        if message["role"] == "user":
            content = message.get("content") or ""
            parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
            shown = message | {"content": [*({"type": "image"} for _ in range(count)), *parts]}
            return [*messages[:number], shown, *messages[number + 1 :]]
    raise DataError(f"{origin}: the row has {count} images and no message of the user that they could stand in.")
