"""Interface of the generator to a transformers model: tokens and a cache in, logits and the cache out."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.contract import experts
from posttrain.contract.views import Sequence
from posttrain.generation.local.attention import grouped
from posttrain.generation.local.cache import SlotCache, joinable
from posttrain.generation.local.prefixes import Prefix
from posttrain.network import rope
from posttrain.network.image_reader import ImageReader
from posttrain.network.images import ImagePlacer, Slots
from posttrain.network.kernels.compiled import plainly
from posttrain.network.kernels.cpu.onednn_weights import prepacked_weights
from posttrain.network.modes import evaluating
from posttrain.network.routing import Routed, Routers
from posttrain.network.token_model import decoder_of


@dataclass
class Prefill:
    """Texts that the model has read."""

    cache: Any
    """Keys and values of the texts, padded on the left; None where the model is read without a cache."""
    width: int
    """Columns of the cache."""
    logits: Tensor
    """Logits of the token after each text, ``(p, V)``."""
    joinable: bool
    """Whether rows of the cache can join another cache."""
    experts: list[Tensor] | None = None
    """Experts of each text's tokens, ``(n_i, layers, choices)``, where they are recorded."""


class Network:
    """The model of a generator, with or without an adapter."""

    def __init__(self, model: Any, reader: ImageReader | None = None, routers: Routers | None = None):
        """Wrap ``model``, whose weights may change; ``reader`` reads the images of texts that have some.

        ``routers`` are those of the model where their choices are recorded.
        """
        self.model = model
        self.routers = routers
        self.inner = model.get_base_model() if hasattr(model, "peft_config") else model
        self._accepted = frozenset(inspect.signature(self.inner.forward).parameters)
        config = self.inner.config.get_text_config(decoder=True)
        self.positions = getattr(config, "max_position_embeddings", None)
        """Number of learnt positions; None where they are not learnt."""
        self.placed = "position_ids" in self._accepted
        """Whether the model takes positions."""
        self.caches, self.pads = True, True
        """Whether the model continues from a cache, and reads texts of unequal length together: see ``ways.settle``."""
        self._scaled = rope.find_scaled(self.inner)
        self.images = None if reader is None else ImagePlacer(reader, decoder_of(self.inner))
        """Puts images into a pass; None for a model of text."""

    @property
    def resumable(self) -> bool:
        """Whether a continued text is read as if its two parts were one."""
        return self.images is None or not self.images.prefix

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.model.parameters()).device

    def read(self, texts: list[Tensor], shown: list[Sequence] | None = None) -> Prefill:
        """Read texts ``(n_i,)`` in one forward pass, padded on the left; ``shown`` are the same with their images."""
        if not self.caches:
            width = max(text.numel() for text in texts)
            with self._watched() as layers:
                logits = self.whole(texts, shown)
            found = _experts(layers, len(texts), width)
            own = None if found is None else [row[: len(text)] for row, text in zip(found, texts, strict=True)]
            return Prefill(None, width, logits, False, own)
        lengths = torch.tensor([text.numel() for text in texts], device=self.device)  # (p,)
        width = int(lengths.max())
        mask = torch.arange(width, device=self.device) >= (width - lengths)[:, None]  # (p, width)
        ids = torch.zeros(len(texts), width, dtype=torch.long, device=self.device)
        for row, text in zip(ids, texts, strict=True):
            row[width - text.numel() :] = text
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        places = _last_columns([text.numel() for text in texts], width)
        with self._pictures(shown, places, ids) as pictures:
            logits, cache, found = self.forward(ids, mask.long(), positions, None, pictures)
        own = None if found is None else [row[width - len(text) :] for row, text in zip(found, texts, strict=True)]
        return Prefill(cache, width, logits[:, -1], self.placed and joinable(cache), own)

    def _pictures(
        self, shown: list[Sequence] | None, places: list[Tensor], ids: Tensor, width: int | None = None
    ) -> AbstractContextManager[dict[str, Any]]:
        """Return the arguments for the images of a pass over ``ids`` (rows, columns), the last of ``width`` columns."""
        if self.images is None or shown is None or not self.images.needs(shown):
            return nullcontext({})
        slots = Slots(shown, places, (ids.shape[0], ids.shape[1]))
        if width is not None:
            ends = [one.part(len(one) - len(place), len(one)) for one, place in zip(shown, places, strict=True)]
            wholes = Slots(shown, _last_columns([len(one) for one in shown], width), (len(shown), width))
            slots = Slots(ends, places, slots.shape, wholes)
        return self.images.placed(decoder_of(self.inner), slots, ids)

    def shift(self, sequence: Sequence) -> int:
        """Return how far the positions after a text exceed its length because of its images."""
        return 0 if self.images is None else self.images.shift(decoder_of(self.inner), sequence)

    def resume(self, texts: list[Tensor], prefixes: list[Prefix], shown: list[Sequence] | None = None) -> Prefill:
        """Read texts from their prefixes, like ``read``; each row reads as many tokens as the one with most new ones.

        Prefixes that are not whole, or of texts with images, must lack the same number of tokens.
        """
        new = max(text.numel() - prefix.tokens for text, prefix in zip(texts, prefixes, strict=True))
        used = [max(0, text.numel() - new) for text in texts]
        lengths = torch.tensor([text.numel() for text in texts], device=self.device)  # (p,)
        width = max(used) + new
        mask = torch.arange(width, device=self.device) >= (width - lengths)[:, None]  # (p, width)
        ids = torch.zeros(len(texts), new, dtype=torch.long, device=self.device)
        for row, text in zip(ids, texts, strict=True):
            row[max(0, new - text.numel()) :] = text[-new:]
        positions = (lengths[:, None] + torch.arange(-new, 0, device=self.device)).clamp(min=0)  # (p, new)
        places = _last_columns([text.numel() for text in texts], new)
        with self._pictures(shown, places, ids, width) as pictures:
            logits, cache, found = self.forward(
                ids, mask.long(), positions, SlotCache.of(prefixes, used, new), pictures
            )
        own = None
        if found is not None:
            own = [
                experts.joined([row[:0] if prefix.experts is None else prefix.experts[:old], row[old - len(text) :]])
                for row, text, prefix, old in zip(found, texts, prefixes, used, strict=True)
            ]
        return Prefill(cache, width, logits[:, -1], True, own)

    def factors(self, length: int) -> tuple[int, ...]:
        """Return a key of the rotary factors for a text of ``length`` tokens."""
        return rope.factors_of(self._scaled, length)

    def forward(
        self,
        ids: Tensor,
        mask: Tensor,
        positions: Tensor,
        cache: Any,
        pictures: dict[str, Any] | None = None,
        last: int = 1,
    ) -> tuple[Tensor, Any, Tensor | None]:
        """Return the logits of the ``last`` columns ``(n, last, V)``, and the cache with ``ids`` ``(n, t)`` added.

        Also the experts of ``ids``, ``(n, t, layers, choices)``, where they are recorded.

        ``mask`` ``(n, T)`` covers the columns of the cache and the new ones, ``positions`` ``(n, t)`` the new ones.
        """
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": True}
        if cache is not None:
            arguments["past_key_values"] = cache
        # Some older architectures derive positions from the mask, or cannot leave out logits.
        arguments |= self._known(position_ids=positions, logits_to_keep=last) | (pictures or {})
        with rope.rows_of(self._kinds((positions[:, -1] + 1).tolist(), positions.shape[1])), self._watched() as layers:
            output = self.model(**arguments)
        return output.logits[:, -last:], output.past_key_values, _experts(layers, *ids.shape)

    def _watched(self) -> AbstractContextManager[list[Routed]]:
        """Collect the routers' decisions in one pass, where they are recorded."""
        return nullcontext([]) if self.routers is None else self.routers.watched()

    def whole(self, texts: list[Tensor], shown: list[Sequence] | None = None) -> Tensor:
        """Return the logits ``(n, V)`` after each text, read as in training: padded on the right, without a cache."""
        ends = torch.tensor([text.numel() - 1 for text in texts], device=self.device)  # (n,)
        ids = nn.utils.rnn.pad_sequence(texts, batch_first=True).to(self.device)  # (n, L)
        kept, place = ends.unique(return_inverse=True)
        known = self._known(logits_to_keep=kept)
        arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False} | known
        places = [torch.arange(text.numel()) + row * ids.shape[1] for row, text in enumerate(texts)]
        with rope.rows_of(self._kinds((ends + 1).tolist())), self._pictures(shown, places, ids) as pictures:
            logits = self.model(**arguments, **pictures).logits  # (n, L or k, V)
        return logits[torch.arange(len(texts), device=self.device), place if "logits_to_keep" in known else ends]

    def outgrown(self, lengths: list[int]) -> bool:
        """Whether a text of one of these lengths has other rotary factors than the same text without its last token."""
        return any(rope.factors_of(self._scaled, n) != rope.factors_of(self._scaled, n - 1) for n in set(lengths))

    def _known(self, **optional: Any) -> dict[str, Any]:
        """Select the arguments that the model takes, without the router loss, which new columns alone do not give."""
        optional["output_router_logits"] = False
        return {name: value for name, value in optional.items() if name in self._accepted}

    def _kinds(self, lengths: list[int], width: int | None = None) -> list[rope.Kind]:
        """Group rows by the rotary factors of their texts; ``width`` columns each, or as many as the longest needs."""
        rows: dict[tuple[int, ...], list[int]] = {}
        for row, length in enumerate(lengths if self._scaled else []):
            rows.setdefault(rope.factors_of(self._scaled, length), []).append(row)
        return [rope.Kind(width or max(lengths[row] for row in own), torch.tensor(own)) for own in rows.values()]

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Put every module into evaluation mode without gradients; restore each module's mode afterwards."""
        # Not inference_mode: tensors that a model or a wrapper caches under it could not take part in training.
        with evaluating(self.model), torch.no_grad(), grouped(self.inner), prepacked_weights(self.model), plainly():
            yield


def _experts(layers: list[Routed], rows: int, columns: int) -> Tensor | None:
    """Return the experts ``(rows, columns, layers, choices)`` of a pass; None where none were recorded."""
    if not layers:
        return None
    return experts.narrowed(torch.stack([one.experts for one in layers], 1)).unflatten(0, (rows, columns))


def _last_columns(lengths: list[int], width: int) -> list[Tensor]:
    """Return for each row the indices of its last columns, as many as its length but at most ``width``."""
    return [
        torch.arange((row + 1) * width - min(width, length), (row + 1) * width) for row, length in enumerate(lengths)
    ]
