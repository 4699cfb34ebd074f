"""Pictures in a question to a reward worker: each distinct one once, as a data URL, and which completion has which."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass, field
from typing import Any

from posttrain.contract.images import content_of, is_picture, open_picture, printable_value
from posttrain.errors import DataError, short

#: Interfaces of questions whose prompts have images, and of those with pictures or bytes in other columns too.
PICTURES, OWN_PICTURES = 2, 3
_HEAD = "data:image/png;base64,"
_BYTES = "data:application/octet-stream;base64,"
#: Most pixels of a question's distinct pictures: a small file can hold a picture of any size.
_MOST_PIXELS = 2**29


def pack_question(asked: dict[str, Any], images: list[list[Any]]) -> dict[str, Any]:
    """Return a question with ``images``, those of each completion.

    ``pictures`` has each distinct one once, as many completions share their prompt's; the column ``images`` has their
    indices. Pictures and bytes of other columns, such as a row's own ``image``, go there too, and ``places`` says where
    each stood. Parts of messages name no picture: ``images`` has them in order. Raises DataError for a picture that
    cannot be read.
    """
    media = _Media()
    shown = [[media.picture(one) for one in own] for own in images]
    columns = {name: values for name, values in asked["columns"].items() if name != "images"}
    packed = {name: media.without(values, [name]) for name, values in printable_value(columns).items()}
    more = {"interface": OWN_PICTURES, "places": media.places} if media.places else {"interface": PICTURES}
    found = {"prompts": printable_value(asked["prompts"]), "columns": packed | {"images": shown}}
    return asked | found | {"pictures": media.urls} | more


@dataclass
class _Media:
    """The pictures and bytes of one question."""

    urls: list[str] = field(default_factory=list)
    """Each distinct one, as a data URL."""
    places: list[list[Any]] = field(default_factory=list)
    """Those that stood in columns: ``[path, index into urls]``, the path from the column's name inwards."""
    known: dict[bytes, int] = field(default_factory=dict)

    def picture(self, image: Any) -> int:
        """Return the index of a picture, which is packed where it is new."""
        digest = hashlib.blake2b(content_of(image), digest_size=32).digest()
        if digest not in self.known:
            file = io.BytesIO()
            open_picture(image).save(file, "PNG", compress_level=1)  # sent once, so time counts more than bytes
            self._add(digest, _HEAD, file.getvalue())
        return self.known[digest]

    def without(self, value: Any, path: list[Any]) -> Any:
        """Return a column's value with None in place of pictures and bytes, whose places are noted."""
        if isinstance(value, dict):
            return {name: self.without(one, [*path, name]) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.without(one, [*path, place]) for place, one in enumerate(value)]
        if not (isinstance(value, bytes) or is_picture(value)):
            return value
        self.places.append([path, self._bytes(value) if isinstance(value, bytes) else self.picture(value)])
        return None

    def _bytes(self, value: bytes) -> int:
        digest = b"bytes" + hashlib.blake2b(value, digest_size=32).digest()  # they arrive as bytes, not as a picture
        if digest not in self.known:
            self._add(digest, _BYTES, value)
        return self.known[digest]

    def _add(self, digest: bytes, head: str, content: bytes) -> None:
        self.known[digest] = len(self.urls)
        self.urls.append(head + base64.b64encode(content).decode())


def unpack_columns(asked: dict[str, Any]) -> dict[str, list[Any]]:
    """Return a question's columns with their pictures, of PIL in RGB, and bytes; no two places share a picture.

    Raises DataError for anything but data URLs (a worker opens no file and fetches no address for a client), for
    indices or places that do not exist, and for pictures that are too large together.
    """
    urls, columns = asked.get("pictures"), asked["columns"]
    if not (isinstance(urls, list) and all(isinstance(one, str) and one.startswith("data:") for one in urls)):
        raise DataError(f"'pictures' are data URLs, such as {_HEAD}...")
    indices = columns.get("images")
    if not isinstance(indices, list) or not all(isinstance(own, list) for own in indices):
        raise DataError("The column 'images' has a list of indices into 'pictures' for each completion.")
    places = asked.get("places", [])
    if not isinstance(places, list) or not all(_is_place(one) for one in places):
        raise DataError("'places' are pairs of a path, a list that begins with a column's name, and an index.")
    known = [("'images'", one) for own in indices for one in own] + [(repr(path[0]), one) for path, one in places]
    for name, index in known:
        if type(index) is not int or not 0 <= index < len(urls):
            raise DataError(f"The column {name} has the index {short(index)}, and there are {len(urls)} pictures.")
    opened = _opened(urls)
    for path, index in places:
        _put(columns, path, opened[index])
    return columns | {"images": [[opened[index].copy() for index in own] for own in indices]}


def _is_place(one: Any) -> bool:
    return isinstance(one, list) and len(one) == 2 and isinstance(one[0], list) and len(one[0]) > 1


def _put(columns: dict[str, Any], path: list[Any], value: Any) -> None:
    """Put a picture, or bytes, into its place in the columns."""
    inner: Any = columns
    try:
        for step in path[:-1]:
            inner = inner[step]
        if inner[path[-1]] is not None:
            raise KeyError
        inner[path[-1]] = value if isinstance(value, bytes) else value.copy()
    except (KeyError, IndexError, TypeError):
        raise DataError(f"The columns have no place {short(path)} for a picture.") from None


def _opened(urls: list[str]) -> list[Any]:
    opened: list[Any] = []
    pixels = 0
    for one in urls:
        if one.startswith(_BYTES):
            opened.append(content_of(one))
            continue
        picture = open_picture(one)
        pixels += picture.width * picture.height
        if pixels > _MOST_PIXELS:
            raise DataError(f"The pictures have more than {_MOST_PIXELS} pixels together. Send fewer or smaller ones.")
        opened.append(picture)
    return opened
