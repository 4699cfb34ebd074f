"""Pictures in a question to a reward worker: each distinct one once, as a data URL, and which completion has which."""

from __future__ import annotations

import base64
import hashlib
import io
from typing import Any

from posttrain.contract.images import content_of, open_picture, printable_value
from posttrain.errors import DataError, short

_HEAD = "data:image/png;base64,"
#: Most pixels of a question's distinct pictures: a small file can hold a picture of any size.
_MOST_PIXELS = 2**29


def pack_question(asked: dict[str, Any], images: list[list[Any]]) -> dict[str, Any]:
    """Return a question with ``images``, those of each completion.

    ``pictures`` has each distinct one once, as many completions share their prompt's; the column ``images`` has their
    indices. Parts of messages name no picture: the column has them in order, and so it has those of a row's own column
    ``image``, which is left out. Raises DataError for a picture that cannot be read.
    """
    pictures: list[str] = []
    known: dict[bytes, int] = {}
    places = [[_place(one, pictures, known) for one in own] for own in images]
    columns = {name: values for name, values in asked["columns"].items() if name not in ("image", "images")}
    return asked | {
        "prompts": printable_value(asked["prompts"]),
        "columns": printable_value(columns) | {"images": places},
        "pictures": pictures,
    }


def _place(image: Any, pictures: list[str], known: dict[bytes, int]) -> int:
    digest = hashlib.blake2b(content_of(image), digest_size=32).digest()
    if digest not in known:
        file = io.BytesIO()
        open_picture(image).save(file, "PNG", compress_level=1)  # sent once, so time counts more than bytes
        known[digest] = len(pictures)
        pictures.append(_HEAD + base64.b64encode(file.getvalue()).decode())
    return known[digest]


def unpack_images(pictures: Any, places: Any) -> list[list[Any]]:
    """Return the pictures of each completion, of PIL in RGB; no two places share one.

    Raises DataError for anything but data URLs (a worker opens no file and fetches no address for a client), for
    indices of no picture, and for pictures that are too large together.
    """
    if not (isinstance(pictures, list) and all(isinstance(one, str) and one.startswith("data:") for one in pictures)):
        raise DataError(f"'pictures' are data URLs, such as {_HEAD}...")
    if not isinstance(places, list) or not all(isinstance(own, list) for own in places):
        raise DataError("The column 'images' has a list of indices into 'pictures' for each completion.")
    count = len(pictures)
    for place in (one for own in places for one in own):
        if type(place) is not int or not 0 <= place < count:
            raise DataError(f"The column 'images' has the index {short(place)}, and there are {count} pictures.")
    opened = _opened(pictures)
    return [[opened[place].copy() for place in own] for own in places]


def _opened(pictures: list[str]) -> list[Any]:
    opened, pixels = [], 0
    for one in pictures:
        picture = open_picture(one)
        pixels += picture.width * picture.height
        if pixels > _MOST_PIXELS:
            raise DataError(f"The pictures have more than {_MOST_PIXELS} pixels together. Send fewer or smaller ones.")
        opened.append(picture)
    return opened
