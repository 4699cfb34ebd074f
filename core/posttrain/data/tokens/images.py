"""Images of a row: their sources, which belong to which sequence, and their placeholder text."""

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

#: Columns with a row's images; image parts without a source take theirs from here, in order.
COLUMNS = ("images", "image")
#: Types of image parts, and keys of their sources in a part or a column.
_PARTS = ("image", "image_url")
_KEYS = ("image", "bytes", "base64", "path", "url", "image_url")
#: Media that only occur in columns, and the names of audio in errors.
_OTHERS = ("videos", "video", "audios", "audio")
#: Columns of forget-retain rows that may hold a sample. ``alternative`` answers instead of what is forgotten.
SAMPLES = ("forget", "retain", "alternative", "retain_alternative")
#: Key of a row, or sample, of text with the numbers of its images.
PLACES = "image places"
_AUDIO = ("audio", "input_audio", "audios")


@dataclass
class Pictures:
    """Images of one row, in the order in which sequences take them."""

    origin: str
    settings: DataSettings
    waiting: list[Any] = field(default_factory=list)
    """Images of the columns of the row, or sample, at hand, not yet taken by a part."""
    sources: list[Any] = field(default_factory=list)
    """Images taken so far."""

    def taken(self, value: Any) -> dict[str, Any]:
        """Add a part's image to the sources; return the part in the template's form."""
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
        """Return a source as it will be opened: paths below the image folder, addresses only if allowed."""
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
    """Replace a row's image parts by numbered ones; return the row and the sources by number.

    If no part of its messages is an image, those of the columns come first in the first user message. Text has
    placeholders of its own: its row's images are those of the columns. A sample of a forget-retain row has images of
    its own, as a row has, or else those of its row. Raises DataError.
    """
    pictures = Pictures(origin, settings)
    samples = {name: row[name] for name in SAMPLES if row.get(name) is not None}
    if not samples:
        return _numbered(row, pictures), pictures.sources
    of_row = {name: row[name] for name in COLUMNS if row.get(name) is not None}
    for name, value in samples.items():
        sample = value if isinstance(value, dict) else {"messages" if is_messages(value) else "text": value}
        row = row | {name: _numbered(_with_columns(sample, list(samples.values()), of_row), pictures)}
    return row, pictures.sources


def _with_columns(sample: Row, samples: list[Any], of_row: Row) -> Row:
    """Return a sample with its columns of images: its own, those of a sample with the same prompt, or the row's.

    A method may have made it of another sample's prompt.
    """
    for one in (sample, *samples):
        if isinstance(one, dict) and one.get("prompt") == sample.get("prompt"):
            found = {column: one[column] for column in COLUMNS if one.get(column) is not None}
            if found:
                return sample | found
    return sample | of_row


def _numbered(row: Row, pictures: Pictures) -> Row:
    """Take the images of a row or a sample; return it, one of text with their numbers under ``PLACES``."""
    column = next((row[name] for name in COLUMNS if row.get(name) is not None), None)
    waiting = [] if column is None else [_source_of(one) for one in (column if isinstance(column, list) else [column])]
    count, taken = len(waiting), len(pictures.sources)
    columns = [name for name, value in row.items() if is_messages(value) and name != "tools"]
    if not waiting and not any(image_parts(row[name]) for name in columns):
        return row
    first = next((name for name in ("prompt", "messages") if name in columns), None)
    if first is None:
        pictures.sources += [pictures.located(source) for source in waiting]
        return row | {PLACES: list(range(taken, taken + count))}
    if waiting and not any(image_parts(row[name]) for name in columns):
        row = row | {first: _at_the_beginning(row[first], count, pictures.origin)}
    pictures.waiting = waiting
    order = [first, *(name for name in columns if name != first)]
    row = row | {name: [number_parts(message, pictures) for message in row[name]] for name in order}
    if pictures.waiting:
        raise DataError(
            f"{pictures.origin}: the row has {count} images and its messages {count - len(pictures.waiting)} image "
            "parts without one of their own. Expected as many of both, or no image part at all."
        )
    return row


def places_in(messages: Any) -> list[int]:
    """Return the numbers of the images in messages, in order; none in text. Raises DataError for misplaced ones."""
    parts = image_parts(messages) if is_messages(messages) else []
    if any("place" not in part for part in parts):
        raise DataError("Image parts stand in a column of several samples or answers. Expected them in its prompt.")
    return [part["place"] for part in parts]


def refuse_media(row: Row, origin: str, reader: ImageReader | None) -> None:
    """Raise ModelError for unsupported media: audio and videos, and images for a text model."""
    rows = [row, *(row[name] for name in SAMPLES if isinstance(row.get(name), dict))]
    found = next((name for one in rows for name in _OTHERS if one.get(name)), None)
    kinds = [part.get("type") for one in rows for value in one.values() if is_messages(value) for part in _media(value)]
    found = found or next((kind for kind in kinds if kind not in _PARTS), None)
    if found in _AUDIO or found == "audio":
        raise ModelError(
            f"{origin}: the row has '{found}', and audio is not supported: remove these rows or the column."
        )
    if found is not None:
        raise ModelError(f"{origin}: the row has '{found}', and videos are not supported: give frames as images.")
    if reader is not None:
        return
    found = next((name for one in rows for name in COLUMNS if one.get(name)), None) or next(iter(kinds), None)
    if found is not None:
        raise ModelError(
            f"{origin}: the row has '{found}', but the model is loaded as a text model without an image processor. "
            "Remove these rows, or the column, from the data."
        )


def expanded(layout: Layout, sources: list[Any], places: list[int], reader: ImageReader, origin: str) -> Layout:
    """Expand the images' placeholders in the layout and shift its positions."""
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
    """Arrange a plain prompt with the processor: PaliGemma's puts a token and a line break around it."""
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
    """Return the source of a part, a column's entry or a cell of a file; None for a part without one."""
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


def image_parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the parts of messages that are images, in order."""
    return [part for part in _media(messages) if part["type"] in _PARTS]


def number_parts(message: dict[str, Any], pictures: Pictures) -> dict[str, Any]:
    """Take the images of a message's parts; return it with their numbers."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = [
        pictures.taken(part) if isinstance(part, dict) and part.get("type") in _PARTS else part for part in content
    ]
    return message | {"content": parts}


def _at_the_beginning(messages: list[dict[str, Any]], count: int, origin: str) -> list[dict[str, Any]]:
    """Put ``count`` image parts before the first user message's content."""
    for number, message in enumerate(messages):
        if message["role"] == "user":
            content = message.get("content") or ""
            parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
            shown = message | {"content": [*({"type": "image"} for _ in range(count)), *parts]}
            return [*messages[:number], shown, *messages[number + 1 :]]
    raise DataError(f"{origin}: the row has {count} images and no message of the user that they could stand in.")
