"""Fixed rows with images, for checks of a layout and of saved models, and the family's inputs for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from posttrain.contract.images import from_pixels
from posttrain.contract.views import Sequence
from posttrain.network.images import ImagePlacer, Slots
from posttrain.network.token_model import decoder_of

if TYPE_CHECKING:
    from posttrain.network.image_reader import ImageReader

#: Height and width of the images.
SIZE = (40, 48)


def shown_rows(reader: ImageReader, vocabulary: int) -> list[Sequence]:
    """Build two rows with one prompt that has an image, and one that has another image behind the same ids."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(255, (2, *SIZE, 3), generator=generator, dtype=torch.uint8)
    found = []
    for place, length in ((0, 5), (0, 3), (1, 4)):
        image, text = reader.read(from_pixels(pixels[place].numpy()))
        shown = torch.tensor(reader.processor.tokenizer(text, add_special_tokens=False)["input_ids"])
        start, end = _text(reader, vocabulary, 3, 4), _text(reader, vocabulary, 4, 6)
        prompt = torch.cat([start, shown, end])
        ids = torch.cat([prompt, _text(reader, vocabulary, length, 5 + length)])
        found.append(Sequence(ids, torch.arange(len(ids)) >= len(prompt), images=(image,)))
    return found


def _text(reader: ImageReader, vocabulary: int, length: int, offset: int) -> Tensor:
    """Return tokens ``(length,)`` without image placeholders."""
    ids = (torch.arange(length) * 7 + offset) % vocabulary
    return torch.where(ids == reader.token, 0, ids)


def plain_inputs(images: ImagePlacer | None, row: Sequence, device: torch.device) -> dict[str, Any]:
    """Return the inputs of the family's own code, beside ids, for the images of one row."""
    if images is None or not images.needs([row]):
        return {}
    slots = Slots([row], [torch.arange(len(row))], (1, len(row)))
    found = images.reader.together(list(row.images)) if row.images else {}
    return {name: value.to(device) for name, value in (found | images.types(slots, device)).items()}


def placer_of(model: Any, reader: ImageReader | None) -> ImagePlacer | None:
    """Return the image placer of a plain transformers or peft model."""
    if reader is None:
        return None
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    return ImagePlacer(reader, decoder_of(inner))
