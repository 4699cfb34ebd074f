"""Pictures in a pass: features once for each picture, placed into the embeddings at its placeholders.

A family's own forward pass merges features into the embeddings and does with them what else it does; it is handed
features that were computed here, for the placeholders of a row in order. So rows with pictures are packed, share their
prompts and pass the chunked head as rows of text do.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.contract.images import Image
from posttrain.contract.views import Sequence
from posttrain.network import attention
from posttrain.network.image_reader import ImageReader, Inputs, stack

#: Bytes of features that are kept where nothing that makes them is trained.
_KEPT = 2**29


@dataclass
class Features:
    """What a picture's placeholders become."""

    embeddings: Tensor
    """``(tokens, H)``."""
    deep: list[Tensor]
    """``(tokens, H)`` for each layer that takes some (Qwen3-VL)."""


@dataclass
class Slots:
    """Sequences as they lie in a pass of ``shape`` (rows, columns)."""

    sequences: list[Sequence]
    places: list[Tensor]
    """For each sequence ``(n,)``: where its tokens lie, counted row by row."""
    shape: tuple[int, int]

    def spread(self, values: list[Tensor], fill: int) -> Tensor:
        """Values ``(..., n)`` of each sequence as ``(..., rows, columns)``; ``fill`` where no sequence lies."""
        whole = values[0].new_full((*values[0].shape[:-1], self.shape[0] * self.shape[1]), fill)
        for value, place in zip(values, self.places, strict=True):
            whole[..., place] = value
        return whole.unflatten(-1, self.shape)

    def images(self) -> list[Image]:
        """The pictures in the order of their placeholders; one that several sequences share once."""
        found: dict[int, Image] = {}
        for sequence, place in zip(self.sequences, self.places, strict=True):
            first = 0
            at = sequence.image_places
            for image in sequence.images:
                found[int(place[at[first]])] = image
                first += image.tokens
        return [image for _, image in sorted(found.items())]

    def literal(self, token: int) -> Tensor:
        """Places ``(k,)`` of tokens that are no placeholder, though they have its id: a model may sample one."""
        found = []
        for sequence, place in zip(self.sequences, self.places, strict=True):
            at = (sequence.ids == token).nonzero()[len(sequence.image_places) :, 0]
            found.append(place[at])
        return torch.cat(found).unique()


class ImagePlacer:
    """Gives a family's decoder the pictures of a pass, as ``reader`` reads them."""

    def __init__(self, reader: ImageReader, decoder: nn.Module):
        self.reader = reader
        self.accepted = frozenset(inspect.signature(decoder.forward).parameters)
        self.own_positions = hasattr(decoder, "get_rope_index")
        """Whether a token's position follows from the pictures before it (M-RoPE)."""
        self.prefix = "token_type_ids" in self.accepted and _sees_prefix(decoder)
        """Whether all that stands before the first learnt token sees itself in both directions (PaliGemma)."""
        self._features: OrderedDict[str, Features] = OrderedDict()
        self._size = 0

    def fresh(self) -> ImagePlacer:
        """The same for another model of the family, which has other features."""
        made = copy.copy(self)
        made._features, made._size = OrderedDict(), 0
        return made

    def needs(self, sequences: list[Sequence]) -> bool:
        """Whether a pass over ``sequences`` is another than one over text."""
        return self.prefix or any(sequence.images for sequence in sequences)

    @contextmanager
    def placed(self, decoder: Any, slots: Slots, ids: Tensor) -> Iterator[dict[str, Any]]:
        """Arguments for the family's forward pass over ``ids`` (rows, columns), which is made within the block."""
        arguments: dict[str, Any] = dict(self.types(slots, ids.device))
        images = slots.images()
        if self.own_positions:
            positions = [self.positions(decoder, sequence) for sequence in slots.sequences]
            arguments["position_ids"] = slots.spread(positions, 0).to(ids.device)  # (3, rows, columns)
        if images:
            arguments["mm_encoder_outputs"] = {"image": self._outputs(decoder, images, ids.device)}
        with _literal(decoder, slots.literal(self.reader.token) if images else None, ids):
            yield arguments

    def types(self, slots: Slots, device: torch.device) -> dict[str, Tensor]:
        """What each token is, ``(rows, columns)``, under the names by which the family wants to know it."""
        marks = [one.image_mask.long() for one in slots.sequences]
        found = {"mm_token_type_ids": slots.spread(marks, 0)} if "mm_token_type_ids" in self.accepted else {}
        if "token_type_ids" in self.accepted:
            if self.prefix:
                marks = [(one.trained.cumsum(0) > 0).long() for one in slots.sequences]
            found["token_type_ids"] = slots.spread(marks, int(self.prefix))
        return {name: value.to(device) for name, value in found.items()}

    def positions(self, decoder: Any, sequence: Sequence) -> Tensor:
        """Positions ``(3, n)`` of a sequence's tokens by the family's own scheme, as it stands alone."""
        if not sequence.images:
            return torch.arange(len(sequence)).expand(3, -1)
        known = inspect.signature(decoder.get_rope_index).parameters
        grids = stack([self._grids(image, known) for image in sequence.images])
        types = sequence.image_mask[None].int()
        found, _ = decoder.get_rope_index(input_ids=sequence.ids[None], mm_token_type_ids=types, **grids)
        return found[:, 0]

    def shift(self, decoder: Any, sequence: Sequence) -> int:
        """By how much the position of the token behind a sequence differs from its length."""
        if not self.own_positions or not sequence.images:
            return 0
        return int(self.positions(decoder, sequence).max()) + 1 - len(sequence)

    def _grids(self, image: Image, known: Any) -> Inputs:
        return {name: value for name, value in self.reader.inputs(image).items() if name in known}

    def _outputs(self, decoder: Any, images: list[Image], device: torch.device) -> Any:
        """The features of ``images`` in the form of the family's own ``get_image_features``."""
        distinct = list({image.digest: image for image in images}.values())
        if _trains(decoder):
            features, form = self._together(decoder, distinct, device)
        else:  # each alone, so that what is kept does not depend on its company
            parts = [self._known(decoder, image, device) for image in distinct]
            features, form = {d: f for part, _ in parts for d, f in part.items()}, parts[0][1]
        ordered = [features[image.digest] for image in images]
        embeddings = [one.embeddings for one in ordered]
        outputs = copy.copy(form)
        if isinstance(form.pooler_output, Tensor) and form.pooler_output.ndim == 3:
            outputs.pooler_output = torch.cat(embeddings).unflatten(0, (-1, form.pooler_output.shape[1]))
        else:
            outputs.pooler_output = tuple(embeddings)
        if ordered[0].deep:
            outputs.deepstack_features = [tuple(layer) for layer in zip(*(one.deep for one in ordered), strict=True)]
        return outputs

    def _known(self, decoder: Any, image: Image, device: torch.device) -> tuple[dict[str, Features], Any]:
        if image.digest not in self._features:
            with torch.no_grad():
                found, self._form = self._together(decoder, [image], device)
            self._features |= found
            self._size += _bytes(found[image.digest])
            while self._size > _KEPT and len(self._features) > 1:
                self._size -= _bytes(self._features.popitem(last=False)[1])
        self._features.move_to_end(image.digest)
        return {image.digest: self._features[image.digest]}, self._form

    def _together(self, decoder: Any, images: list[Image], device: torch.device) -> tuple[dict[str, Features], Any]:
        """Features of distinct pictures, those of one shape in one call, and what such a call gives."""
        alike: dict[tuple[Any, ...], list[Image]] = {}
        for image in images:
            shapes = tuple((name, *value.shape[1:]) for name, value in self.reader.inputs(image).items())
            alike.setdefault(shapes, []).append(image)
        found: dict[str, Features] = {}
        form: Any = None
        known = inspect.signature(decoder.get_image_features).parameters
        kind = next(p.dtype for p in decoder.parameters() if p.is_floating_point())
        for members in alike.values():
            inputs = stack([self.reader.inputs(image) for image in members])
            inputs = {name: _moved(value, device, kind) for name, value in inputs.items() if name in known}
            with attention.reading(None):
                form = decoder.get_image_features(**inputs, return_dict=True)
            found |= _split(form, members)
        return found, form


def _split(outputs: Any, images: list[Image]) -> dict[str, Features]:
    """A family's features taken apart by picture; each has as many rows as its picture has placeholders."""
    counts = [image.tokens for image in images]
    embeddings = _flat(outputs.pooler_output).split(counts)
    layers = [_flat(layer).split(counts) for layer in getattr(outputs, "deepstack_features", None) or []]
    return {
        image.digest: Features(embeddings[place], [layer[place] for layer in layers])
        for place, image in enumerate(images)
    }


def _flat(values: Any) -> Tensor:
    """``(all tokens, H)`` of a tensor, or of a list of one for each picture."""
    parts = [values] if isinstance(values, Tensor) else list(values)
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


def _moved(value: Tensor, device: torch.device, kind: torch.dtype) -> Tensor:
    return value.to(device, kind) if value.is_floating_point() else value.to(device)


def _bytes(features: Features) -> int:
    return sum(one.numel() * one.element_size() for one in (features.embeddings, *features.deep))


def language_part(decoder: Any) -> nn.Module:
    """The part of a decoder that reads embeddings, be they of text or of pictures; of a model of text all of it."""
    embeddings = decoder.get_input_embeddings()
    inside = [child for child in decoder.children() if embeddings in child.modules() and child is not embeddings]
    return inside[0] if inside else decoder


def _trains(decoder: Any) -> bool:
    """Whether anything that makes features is trained."""
    language = {id(parameter) for parameter in language_part(decoder).parameters()}
    return any(parameter.requires_grad for parameter in decoder.parameters() if id(parameter) not in language)


@torch.no_grad()
def _sees_prefix(decoder: Any) -> bool:
    """Whether tokens of type 0 see each other in both directions: a first token that knows what follows it."""
    device = decoder.get_input_embeddings().weight.device
    ids = torch.tensor([[3, 4, 5], [3, 4, 6]], device=device)
    training = decoder.training
    decoder.eval()
    try:
        found = decoder(input_ids=ids, token_type_ids=torch.zeros_like(ids), use_cache=False).last_hidden_state
    finally:
        decoder.train(training)
    return not bool(torch.allclose(found[0, 0], found[1, 0], rtol=1e-5, atol=1e-6))


@contextmanager
def _literal(decoder: Any, places: Tensor | None, ids: Tensor) -> Iterator[None]:
    """Have tokens at ``places`` read as the text that they are, not as placeholders."""
    if places is None or not len(places):
        yield
        return
    embeddings = decoder.get_input_embeddings()
    places = places.to(ids.device)
    token = ids.flatten()[places[:1]]  # (1,)
    ids.view(-1)[places] = 0  # what the family looks for placeholders in

    def put(module: Any, arguments: Any, output: Tensor) -> Tensor:
        own = module.forward(token).reshape(1, -1)  # (1, H)
        flat = output.flatten(0, 1).index_put((places,), own.expand(len(places), -1))
        return flat.view_as(output)

    hook = embeddings.register_forward_hook(put)
    try:
        yield
    finally:
        hook.remove()
