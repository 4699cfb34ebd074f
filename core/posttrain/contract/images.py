"""Images of rows: accepted sources, digests, and how they are opened.

Tokenised data, caches and rollouts hold references, never pixels: an ``Image`` names its source and carries a digest of
it, which tells two images behind the same placeholders apart.
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

from posttrain.errors import DataError, DependencyError, first_line, short

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from torch import Tensor

#: Addresses, fetched only with --image-urls.
WEB = ("http://", "https://")
#: Seconds before a fetch times out, and the largest image in bytes.
_PATIENCE, _LARGEST = 30.0, 2**26
#: Characters of a source that a run's files name; longer ones are data URLs.
_LONGEST_NAME = 1000
_WANTED = "Expected a path, bytes, a picture of PIL, or a data URL such as data:image/png;base64,..."


@dataclass(frozen=True, eq=False)
class Image:
    """An image behind the placeholders of a sequence."""

    source: Any
    """A path, an address, encoded bytes, or a PIL image."""
    digest: str
    """Digest of the image and of the processor's options."""
    tokens: int
    """Number of embeddings that it becomes."""
    token: int
    """Id of the placeholder token, which is repeated once per embedding."""
    place: int = 0
    """Index among the images of its row, or of its episode."""
    start: int = 0
    """Index in its sequence before which none of its placeholders stands. In an episode sampled tokens come before
    later images, and one of them may have the placeholder's id."""
    marks: Tensor = field(init=False, repr=False)
    """``(tokens,)`` int64: numbers that no token id and no other image has."""

    def __post_init__(self):
        seed = int.from_bytes(hashlib.blake2b(self.digest.encode(), digest_size=8).digest(), "big") >> 2
        object.__setattr__(self, "marks", -1 - seed - torch.arange(self.tokens))

    def picture(self) -> Picture:
        """Open the image, upright and in RGB. Raises DataError where it cannot be read."""
        return open_picture(self.source)


def plain_images(images: tuple[Image, ...]) -> list[list[Any]]:
    """Return images as plain values, for a checkpoint; PIL images become PNG files in memory."""
    return [[plain_value(one.source), one.digest, one.tokens, one.token, one.place, one.start] for one in images]


def images_of(plain: list[list[Any]]) -> tuple[Image, ...]:
    """Rebuild images from the result of ``plain_images``."""
    return tuple(Image(*values) for values in plain)


def plain_value(value: Any) -> Any:
    """Return a row's value with a PNG file in memory in place of each PIL image."""
    if isinstance(value, dict):
        return {name: plain_value(one) for name, one in value.items()}
    if isinstance(value, list):
        return [plain_value(one) for one in value]
    if type(value).__module__.startswith("PIL."):
        file = io.BytesIO()
        open_picture(value).save(file, "PNG")
        return file.getvalue()
    return value


def portable_value(value: Any) -> Any:
    """Return a value for JSON, with a data URL in place of each PIL image and of bytes."""
    if isinstance(value, dict):
        return {name: portable_value(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [portable_value(one) for one in value]
    plain = plain_value(value)
    return f"data:image/png;base64,{base64.b64encode(plain).decode()}" if isinstance(plain, bytes) else plain


def printable_value(value: Any) -> Any:
    """Return a prompt or messages for a file of the run, with a short name in place of each image."""
    if isinstance(value, dict):
        if value.get("type") in ("image", "image_url"):
            found = next((one for name, one in value.items() if name != "type" and isinstance(one, str)), "")
            return {"type": "image"} | ({"path": found} if found and len(found) < _LONGEST_NAME else {})
        return {name: printable_value(one) for name, one in value.items()}
    return [printable_value(one) for one in value] if isinstance(value, list) else value


def steady_source(source: Any) -> Any:
    """Return a source that later changes do not reach: a copy of a PIL image, the bytes of a file. Raises DataError."""
    if isinstance(source, str):
        return source if source.startswith("data:") else content_of(source)
    return source.copy() if is_picture(source) else source


def content_of(source: Any) -> bytes:
    """Return the bytes that decide what an image shows. Raises DataError for an unknown source."""
    if isinstance(source, bytes):
        return source
    if isinstance(source, str):
        if source.startswith("data:"):
            return _decoded(source)
        return _fetched(source) if source.startswith(WEB) else _read(Path(source))
    if is_picture(source):
        facts = f"{source.mode} {source.size} {source.getexif().get(0x0112, 1)} "
        return facts.encode() + source.tobytes() + bytes(source.getpalette() or [])
    raise DataError(f"image {short(source)}: is a {type(source).__name__}. {_WANTED}")


def open_picture(source: Any) -> Picture:
    """Open an image, upright and in RGB. Raises DataError where it cannot be read."""
    from PIL import ImageOps

    try:
        opened = source if is_picture(source) else _pillow().open(io.BytesIO(content_of(source)))
        upright: Any = ImageOps.exif_transpose(opened)
        return upright.convert("RGB")
    except DataError:
        raise
    except Exception as error:  # each format's reader raises its own errors
        reason = first_line(error)
        raise DataError(f"image {named(source)}: cannot be read ({reason}). Expected a file that PIL opens.") from None


def from_pixels(pixels: Any) -> Picture:
    """Build an image from pixels ``(height, width, 3)``, a numpy array of bytes."""
    found: Picture = _pillow().fromarray(pixels)
    return found


def is_picture(source: Any) -> bool:
    """Whether a value is a picture of PIL. Raises DependencyError where PIL is not installed."""
    return isinstance(source, _pillow().Image)


def named(source: Any) -> str:
    """Return an image's source as an error shows it."""
    return f"of {len(source)} bytes" if isinstance(source, bytes) else short(source)


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
