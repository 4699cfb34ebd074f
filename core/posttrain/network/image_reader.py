"""A transformers processor for the core: from images to their placeholder text and to a model's inputs."""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.contract.images import Image, content_of, open_picture
from posttrain.errors import ModelError, first_line

Inputs = dict[str, Tensor]
#: Bytes of processed images that are cached.
_KEPT = 2**28
#: Part of a processor that images do not need and that has dependencies of its own.
_BESIDE = "video_processor"
#: Outputs of a processor that belong to the text.
_OF_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels")
_OFFSETS = "text_replacement_offsets"


class ImageReader:
    """Reads images with ``processor``, whose placeholder token is ``token``.

    The reader is an attribute of the tokenizer (``reader_of``). Images of more than ``max_pixels`` are scaled down
    before the processor sees them. ``files`` are further files of the model's folder by name, kept for saved folders.
    """

    def __init__(
        self, processor: Any, token: int, max_pixels: int | None = None, files: dict[str, bytes] | None = None
    ):
        self.processor = processor
        self.token = token
        self.max_pixels = max_pixels
        self.files = files or {}
        self.placeholder: str = processor.image_token
        """Placeholder of one image in text that is not yet expanded."""
        self._texts: dict[tuple[int, int], str] = {}
        self._inputs: OrderedDict[str, Inputs] = OrderedDict()
        self._size = 0
        self._facts = hashlib.sha256(f"{_configuration(processor)} {max_pixels}".encode()).hexdigest()

    @property
    def source(self) -> str:
        """Hash that differs whenever the same image could become other tokens or other inputs."""
        return self._facts

    def digest(self, source: Any) -> str:
        """Return the digest of an image under this processor. Raises DataError where it cannot be read."""
        return hashlib.blake2b(self._facts.encode() + content_of(source), digest_size=16).hexdigest()

    def read(self, source: Any, place: int = 0) -> tuple[Image, str]:
        """Return an image as a sequence carries it, and its placeholder text. Raises DataError."""
        picture = self._limited(open_picture(source))
        if picture.size not in self._texts:  # the placeholder text follows from the size
            self._texts[picture.size] = self._expansion(picture)
        text = self._texts[picture.size]
        return Image(source, self.digest(source), self._count(text), self.token, place), text

    def prompt(self, text: str, pictures: int) -> str:
        """Return a plain prompt with placeholders, as the processor itself arranges it before an answer."""
        blank = [[_blank()] * pictures]
        arranged = self.processor.prepare_inputs_layout(images=blank, text=[text])[1]
        return str(arranged[0])

    def inputs(self, image: Image) -> Inputs:
        """Return the model's inputs of one image."""
        if image.digest in self._inputs:
            self._inputs.move_to_end(image.digest)
            return self._inputs[image.digest]
        found = self.together([image])
        self._inputs[image.digest] = found
        self._size += _bytes(found)
        while self._size > _KEPT and len(self._inputs) > 1:
            self._size -= _bytes(self._inputs.popitem(last=False)[1])
        return found

    def together(self, images: list[Image]) -> Inputs:
        """Return the model's inputs of the images of one row, as the processor arranges them."""
        pictures = [self.shown(image) for image in images]
        found = self._processed(self.placeholder * len(pictures), pictures)
        return {name: value for name, value in found.items() if name not in _OF_TEXT and isinstance(value, Tensor)}

    def shown(self, image: Image) -> Any:
        """Return the picture as the processor gets it. Raises DataError."""
        return self._limited(image.picture())

    def unmarked(self, text: str) -> str:
        """Return text without the tokens of images, which a model may sample and an environment may repeat."""
        for mark in (self.placeholder, self.processor.tokenizer.convert_ids_to_tokens(self.token)):
            text = text.replace(mark, "")
        return text

    def folded(self, ids: list[int], images: list[Image]) -> list[int]:
        """Return a prompt's token ids with one placeholder for each image, as before the processor expanded them.

        Another token stands for placeholders that a model has written itself; ``restored`` undoes that.
        """
        found: list[int] = []
        rest = ids
        for image in images:
            skipped = max(0, image.start - (len(ids) - len(rest)))  # a sampled token there may be a placeholder's
            texts = self.read(image.source)[1], self.placeholder
            expansion, placeholder = (self.processor.tokenizer.encode(t, add_special_tokens=False) for t in texts)
            count = len(expansion)
            starts = range(skipped, len(rest) - count + 1)
            place = next((at for at in starts if rest[at : at + count] == expansion), None)
            if place is None:
                raise ModelError(
                    f"{type(self.processor).__name__} writes an image as tokens that its prompt does not have. Sample "
                    "with --generation hf."
                )
            found += self._without_marks(rest[:place]) + placeholder
            rest = rest[place + count :]
        return found + self._without_marks(rest)

    def restored(self, expanded: list[int], ids: list[int]) -> list[int]:
        """Return expanded ids with the placeholders of ``ids``, which was folded, that a model has written itself."""
        if len(expanded) != len(ids):
            return expanded
        marks, other = self._marks
        return [b if a == other and b in marks else a for a, b in zip(expanded, ids, strict=True)]

    def _without_marks(self, ids: list[int]) -> list[int]:
        marks, other = self._marks
        return [other if one in marks else one for one in ids]

    @property
    def _marks(self) -> tuple[set[int], int]:
        """Ids for which a processor puts images, and another id."""
        marks = {self.token, self.processor.tokenizer.convert_tokens_to_ids(self.placeholder)}
        return marks, next(one for one in range(len(marks) + 1) if one not in marks)

    def save(self, folder: Path, tokenizer: Any) -> None:
        """Write the processor beside a model, with ``tokenizer`` instead of its own."""
        before = self.processor.tokenizer
        self.processor.tokenizer = tokenizer
        try:
            self.processor.save_pretrained(folder)
        finally:
            self.processor.tokenizer = before
        for name, content in self.files.items():
            if not (folder / name).exists():
                (folder / name).write_bytes(content)
        _keep_sections(folder / "processor_config.json", self.files.get("processor_config.json"))

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without what can be recomputed, and with an importable class."""
        kind = getattr(type(self.processor), "whole", type(self.processor))
        parts = kind, kind is not type(self.processor), self.processor.__dict__
        return self.__dict__ | {"_inputs": OrderedDict(), "_size": 0, "processor": parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Undo ``__getstate__``."""
        kind, cut, values = state["processor"]
        self.__dict__.update(state)
        self.processor = object.__new__(without_videos(kind) if cut else kind)
        self.processor.__dict__.update(values)

    def _limited(self, picture: Any) -> Any:
        width, height = picture.size
        if self.max_pixels is None or width * height <= self.max_pixels:
            return picture
        scale = (self.max_pixels / (width * height)) ** 0.5
        return picture.resize((max(1, int(width * scale)), max(1, int(height * scale))))

    def _expansion(self, picture: Any) -> str:
        found = self._processed(self.placeholder, [picture], return_text_replacement_offsets=True)
        return str(found[_OFFSETS][0][0]["replacement"])

    def _count(self, text: str) -> int:
        return text.count(self.processor.tokenizer.convert_ids_to_tokens(self.token))

    def _processed(self, text: str, pictures: list[Any], **options: Any) -> Any:
        try:
            return self.processor(text=[text], images=[pictures], return_tensors="pt", **options)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            sizes = ", ".join(f"{one.size[0]}x{one.size[1]}" for one in pictures)
            reason = first_line(error)
            raise ModelError(
                f"{type(self.processor).__name__} cannot read pictures of {sizes} ({reason}). Expected larger ones, or "
                "of a less extreme shape."
            ) from None


def reader_of(tokenizer: Any) -> ImageReader | None:
    """Return the reader of a tokenizer; None where the model reads only text."""
    return getattr(tokenizer, "image_reader", None)


def with_reader(tokenizer: Any, reader: ImageReader | None) -> Any:
    """Return the tokenizer with its reader, and with the processor's chat template."""
    tokenizer.image_reader = reader
    if reader is not None and reader.processor.chat_template:
        tokenizer.chat_template = reader.processor.chat_template
    return tokenizer


def without_videos(kind: Any) -> Any:
    """Return a processor class without its part for videos, under the same name."""
    parts = list(kind.get_attributes())
    if _BESIDE not in parts:
        return kind
    place = parts.index(_BESIDE)
    left = parts[:place] + parts[place + 1 :]

    def from_args_and_dict(cls: Any, args: Any, processor_dict: dict[str, Any], **options: Any) -> Any:
        known = {name: value for name, value in processor_dict.items() if name != _BESIDE}
        return kind.from_args_and_dict.__func__(cls, [*args[:place], None, *args[place:]], known, **options)

    own: dict[str, Any] = {
        "whole": kind,
        "get_attributes": classmethod(lambda cls: left),
        "from_args_and_dict": classmethod(from_args_and_dict),
        "__module__": kind.__module__,
    }
    return type(kind.__name__, (kind,), own)


def _blank() -> Any:
    import PIL.Image

    return PIL.Image.new("RGB", (8, 8))


def _bytes(inputs: Inputs) -> int:
    return sum(value.numel() * value.element_size() for value in inputs.values())


def _configuration(processor: Any) -> str:
    """Return all options of the processor except its template, which has a cache key of its own."""
    facts = json.loads(processor.to_json_string())
    facts.pop("chat_template", None)
    return json.dumps([facts, json.loads(processor.image_processor.to_json_string())], sort_keys=True)


def _keep_sections(file: Path, before: bytes | None) -> None:
    """Restore parts of the processor that are not loaded here, such as one for videos, in its file."""
    if before is None or not file.is_file():
        return
    found = json.loads(file.read_text(encoding="utf-8"))
    lost = {name: value for name, value in json.loads(before).items() if name not in found}
    if lost:
        file.write_text(json.dumps(found | lost, indent=2) + "\n", encoding="utf-8")


def literal_places(text: str, placeholder: str) -> list[tuple[int, int]]:
    """Return the spans of placeholders in a text, as (first, behind the last) characters."""
    return [match.span() for match in re.finditer(re.escape(placeholder), text)]


def stack(inputs: list[Inputs]) -> Inputs:
    """Concatenate the inputs of several images along the first dimension."""
    return {name: torch.cat([one[name] for one in inputs]) for name in inputs[0]}
