"""Pictures of rows: what a row may name one by, what is kept of it, and how it is opened.

Tokenised data, caches and rollouts hold references, never pixels: an ``Image`` names its picture and carries a digest
of it, by which two pictures behind the same placeholders are told apart.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import urllib.request
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from posttrain.errors import DataError, DependencyError, short

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from torch import Tensor

#: Addresses that are fetched only where an option asks for it.
WEB = ("http://", "https://")
#: Seconds that an address may take to answer, and bytes that are taken of it at most.
_PATIENCE, _LARGEST = 30.0, 2**26
_WANTED = "Expected a path, bytes, a picture of PIL, or a data URL such as data:image/png;base64,..."


@dataclass(frozen=True, eq=False)
class Image:
    """A picture behind the placeholders of a sequence."""

    source: Any
    """A path, an address, encoded bytes, or a picture of PIL."""
    digest: str
    """Of the picture, and of all that a processor does to it."""
    tokens: int
    """How many embeddings it becomes."""
    token: int
    """Id of the placeholder that stands once for each of them."""
    place: int = 0
    """Which of its row's pictures it is."""
    marks: Tensor = field(init=False, repr=False)
    """``(tokens,)`` int64: numbers that no token id and no other picture has."""

    def __post_init__(self):
        seed = int.from_bytes(hashlib.blake2b(self.digest.encode(), digest_size=8).digest(), "big") >> 2
        object.__setattr__(self, "marks", -1 - seed - torch.arange(self.tokens))

    def picture(self) -> Picture:
        """The picture itself, upright and in RGB. Raises DataError where it cannot be read."""
        return open_picture(self.source)


def content_of(source: Any) -> bytes:
    """The bytes that decide what a picture shows. Raises DataError for what names none."""
    if isinstance(source, bytes):
        return source
    if isinstance(source, str):
        if source.startswith("data:"):
            return _decoded(source)
        return _fetched(source) if source.startswith(WEB) else _read(Path(source))
    if _is_picture(source):
        facts = f"{source.mode} {source.size} {source.getexif().get(0x0112, 1)} "
        return facts.encode() + source.tobytes() + bytes(source.getpalette() or [])
    raise DataError(f"image {short(source)}: is a {type(source).__name__}. {_WANTED}")


def open_picture(source: Any) -> Picture:
    """A picture, upright and in RGB. Raises DataError where it cannot be read."""
    from PIL import ImageOps

    try:
        opened = source if _is_picture(source) else _pillow().open(io.BytesIO(content_of(source)))
        upright: Any = ImageOps.exif_transpose(opened)
        return upright.convert("RGB")
    except DataError:
        raise
    except Exception as error:  # each format's reader raises what it likes
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"image {named(source)}: cannot be read ({reason}). Expected a file that PIL opens.") from None


def from_pixels(pixels: Any) -> Picture:
    """A picture of pixels ``(height, width, 3)``, a numpy array of bytes."""
    found: Picture = _pillow().fromarray(pixels)
    return found


def named(source: Any) -> str:
    """A picture's source as an error shows it."""
    return f"of {len(source)} bytes" if isinstance(source, bytes) else short(source)


def _is_picture(source: Any) -> bool:
    return isinstance(source, _pillow().Image)


def _pillow() -> Any:
    try:
        import PIL.Image
    except ImportError:
        raise DependencyError(
            "Images need the package pillow. Install it with: pip install 'posttrain[images]'"
        ) from None
    return PIL.Image


def _decoded(url: str) -> bytes:
    head, comma, text = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise DataError(f"image {short(url)}: is a data URL without base64. {_WANTED}")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"image {short(url)}: its base64 is broken ({error}). {_WANTED}") from None


def _read(path: Path) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except OSError as error:
        raise DataError(
            f"image '{path}': cannot be read ({error.strerror}). Expected a file; paths begin in the working folder, "
            "or where --image-folder says."
        ) from None


@lru_cache(maxsize=64)
def _fetched(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "posttrain"})
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
            found: bytes = answer.read(_LARGEST + 1)
    except (OSError, ValueError) as error:
        raise DataError(f"image '{url}': cannot be fetched ({error}). Check the address and the network.") from None
    if len(found) > _LARGEST:
        raise DataError(f"image '{url}': has more than {_LARGEST} bytes. Expected a smaller picture, or a file.")
    return found
