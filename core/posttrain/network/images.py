"""Images in a pass: features once per image, inserted into the embeddings at its placeholders.

A family's own forward pass merges features into the embeddings and processes them further; it gets features computed
here, in the order of a row's placeholders. So rows with images are packed, share their prompts and pass the chunked
head like rows of text.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import transformers
from torch import Tensor, nn

from posttrain.contract.images import Image
from posttrain.contract.views import Sequence
from posttrain.errors import ModelError
from posttrain.network import attention
from posttrain.network.image_reader import ImageReader, Inputs, stack

#: Decoder -> whether tokens of type 0 see each other in both directions.
_prefixed: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
#: Bytes of features that are cached where nothing that computes them is trained.
_KEPT = 2**29


@dataclass
class Features:
    """Embeddings of an image's placeholders."""

    embeddings: Tensor
    """``(tokens, H)``."""
    deep: list[Tensor]
    """``(tokens, H)`` for each layer that takes features (Qwen3-VL)."""


@dataclass
class Slots:
    """Positions of sequences in a pass of ``shape`` (rows, columns)."""

    sequences: list[Sequence]
    places: list[Tensor]
    """For each sequence ``(n,)``: indices of its tokens, counted row by row."""
    shape: tuple[int, int]
    wholes: Slots | None = None
    """The whole texts in all columns, where a cache holds their beginnings and the pass reads their ends alone."""

    def spread(self, values: list[Tensor], fill: int) -> Tensor:
        """Scatter values ``(..., n)`` of each sequence to ``(..., rows, columns)``; ``fill`` elsewhere."""
        whole = values[0].new_full((*values[0].shape[:-1], self.shape[0] * self.shape[1]), fill)
        for value, place in zip(values, self.places, strict=True):
            whole[..., place] = value
        return whole.unflatten(-1, self.shape)

    def images(self) -> list[Image]:
        """Return the images in the order of their placeholders; one that several sequences share once."""
        found: dict[int, Image] = {}
        for sequence, place in zip(self.sequences, self.places, strict=True):
            first = 0
            at = sequence.image_places
            for image in sequence.images:
                found[int(place[at[first]])] = image
                first += image.tokens
        return [image for _, image in sorted(found.items())]

    def literal(self, token: int) -> Tensor:
        """Return the indices ``(k,)`` of tokens with the placeholder's id that are none: a model may sample one."""
        found = []
        for sequence, place in zip(self.sequences, self.places, strict=True):
            at = ((sequence.ids == token) & ~sequence.image_mask).nonzero()[:, 0]
            found.append(place[at])
        return torch.cat(found).unique()


class ImagePlacer:
    """Passes images to a family's decoder, read by ``reader``."""

    def __init__(self, reader: ImageReader, decoder: nn.Module):
        self.reader = reader
        self.accepted = frozenset(inspect.signature(decoder.forward).parameters)
        self.own_positions = hasattr(decoder, "get_rope_index")
        """Whether a token's position depends on the images before it (M-RoPE)."""
        self.prefix = "token_type_ids" in self.accepted and _sees_prefix(decoder)
        """Whether all tokens before the first trained one see each other in both directions (PaliGemma)."""
        self._features: OrderedDict[str, Features] = OrderedDict()
        self._size = 0

    def fresh(self) -> ImagePlacer:
        """Return a copy for another model of the family, without features."""
        made = copy.copy(self)
        made._features, made._size = OrderedDict(), 0
        return made

    def needs(self, sequences: list[Sequence]) -> bool:
        """Return whether a pass over ``sequences`` differs from one over text."""
        return self.prefix or any(sequence.images for sequence in sequences)

    @contextmanager
    def placed(self, decoder: Any, slots: Slots, ids: Tensor) -> Iterator[dict[str, Any]]:
        """Yield arguments for the family's forward pass over ``ids`` (rows, columns), which runs inside the block.

        Raises ModelError for a family that would ignore them.
        """
        whole = slots.wholes or slots
        arguments: dict[str, Any] = dict(self.types(whole, ids.device))  # masks look at all columns
        images = slots.images()
        if self.own_positions:
            positions = [
                self.positions(decoder, text)[:, len(text) - len(place) :]
                for text, place in zip(whole.sequences, slots.places, strict=True)
            ]
            arguments["position_ids"] = slots.spread(positions, 0).to(ids.device)  # (3, rows, columns)
        if images and "mm_encoder_outputs" not in self.accepted:
            raise ModelError(
                f"{type(decoder).__name__} of transformers {transformers.__version__} takes no features of images; "
                "families do since 5.18. Upgrade with: pip install -U 'transformers>=5.18'"
            )
        if images:
            arguments["mm_encoder_outputs"] = {"image": self._outputs(decoder, images, ids.device)}
        with _literal(decoder, slots.literal(self.reader.token) if images else None, ids):
            yield arguments

    def types(self, slots: Slots, device: torch.device) -> dict[str, Tensor]:
        """Return each token's type, ``(rows, columns)``, under the family's argument names."""
        marks = [one.image_mask.long() for one in slots.sequences]
        found = {"mm_token_type_ids": slots.spread(marks, 0)} if "mm_token_type_ids" in self.accepted else {}
        if "token_type_ids" in self.accepted:
            if self.prefix:
                marks = [(one.trained.cumsum(0) > 0).long() for one in slots.sequences]
            found["token_type_ids"] = slots.spread(marks, int(self.prefix))
        return {name: value.to(device) for name, value in found.items()}

    def positions(self, decoder: Any, sequence: Sequence) -> Tensor:
        """Return positions ``(3, n)`` of a sequence's tokens by the family's own scheme, as if it were alone."""
        if not sequence.images:
            return torch.arange(len(sequence)).expand(3, -1)
        known = inspect.signature(decoder.get_rope_index).parameters
        grids = stack([self._grids(image, known) for image in sequence.images])
        types = sequence.image_mask[None].int()
        found, _ = decoder.get_rope_index(input_ids=sequence.ids[None], mm_token_type_ids=types, **grids)
        return found[:, 0]

    def shift(self, decoder: Any, sequence: Sequence) -> int:
        """Return by how much the position of the token after a sequence differs from its length."""
        if not self.own_positions or not sequence.images:
            return 0
        return int(self.positions(decoder, sequence).max()) + 1 - len(sequence)

    def _grids(self, image: Image, known: Any) -> Inputs:
        return {name: value for name, value in self.reader.inputs(image).items() if name in known}

    def _outputs(self, decoder: Any, images: list[Image], device: torch.device) -> Any:
        """Return the features of ``images`` in the form of the family's own ``get_image_features``."""
        distinct = list({image.digest: image for image in images}.values())
        if _trains(decoder):
            features, form = self._together(decoder, distinct, device)
        else:  # each alone, so that cached features do not depend on the rest of the pass
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
        """Compute features of distinct images, one call per shape; return them and the output of the last call."""
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
    """Split a family's features by image; each has as many rows as its image has placeholders."""
    counts = [image.tokens for image in images]
    embeddings = _flat(outputs.pooler_output).split(counts)
    layers = [_flat(layer).split(counts) for layer in getattr(outputs, "deepstack_features", None) or []]
    return {
        image.digest: Features(embeddings[place], [layer[place] for layer in layers])
        for place, image in enumerate(images)
    }


def _flat(values: Any) -> Tensor:
    """Flatten a tensor, or a list with one per image, to ``(all tokens, H)``."""
    parts = [values] if isinstance(values, Tensor) else list(values)
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


def _moved(value: Tensor, device: torch.device, kind: torch.dtype) -> Tensor:
    return value.to(device, kind) if value.is_floating_point() else value.to(device)


def _bytes(features: Features) -> int:
    return sum(one.numel() * one.element_size() for one in (features.embeddings, *features.deep))


def language_part(decoder: Any) -> nn.Module:
    """Return the part of a decoder that reads embeddings of text and images; the whole decoder of a text model."""
    embeddings = decoder.get_input_embeddings()
    inside = [child for child in decoder.children() if embeddings in child.modules() and child is not embeddings]
    return inside[0] if inside else decoder


def _trains(decoder: Any) -> bool:
    """Return whether anything that computes features is trained."""
    language = {id(parameter) for parameter in language_part(decoder).parameters()}
    return any(parameter.requires_grad for parameter in decoder.parameters() if id(parameter) not in language)


def _sees_prefix(decoder: Any) -> bool:
    """Return whether tokens of type 0 see each other in both directions; found once, before weights are sharded."""
    if decoder not in _prefixed:
        _prefixed[decoder] = _reads_ahead(decoder)
    return _prefixed[decoder]


@torch.no_grad()
def _reads_ahead(decoder: Any) -> bool:
    """Return whether the first of some tokens of type 0 depends on later ones."""
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
    """Embed tokens at ``places`` as text inside the block, not as placeholders."""
    if places is None or not len(places):
        yield
        return
    embeddings = decoder.get_input_embeddings()
    places = places.to(ids.device)
    token = ids.flatten()[places[:1]]  # (1,)
    ids.view(-1)[places] = 0  # hides them from the family's search for placeholders

    def put(module: Any, arguments: Any, output: Tensor) -> Tensor:
        own = module.forward(token).reshape(1, -1)  # (1, H)
        flat = output.flatten(0, 1).index_put((places,), own.expand(len(places), -1))
        return flat.view_as(output)

    hook = embeddings.register_forward_hook(put)
    try:
        yield
    finally:
        hook.remove()
