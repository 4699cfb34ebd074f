"""A transformers model as the generator sees it: tokens and a cache in, logits and the cache out."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.contract.views import Sequence
from posttrain.generation.local.attention import grouped
from posttrain.generation.local.cache import SlotCache, joinable
from posttrain.generation.local.prefixes import Prefix
from posttrain.network import rope
from posttrain.network.image_reader import ImageReader
from posttrain.network.images import ImagePlacer, Slots
from posttrain.network.kernels.cpu.onednn_weights import prepacked_weights
from posttrain.network.modes import evaluating
from posttrain.network.token_model import decoder_of


@dataclass
class Prefill:
    """Texts that the model has read."""

    cache: Any
    """Their keys and values, padded on the left; None where the model is read without a cache."""
    width: int
    """Columns of the cache."""
    logits: Tensor
    """What follows each text, ``(p, V)``."""
    joinable: bool
    """Whether rows of the cache can be laid next to those of another one."""


class Network:
    """The model behind a generator, with or without an adapter around it."""

    def __init__(self, model: Any, reader: ImageReader | None = None):
        """Wrap ``model``, whose weights may go on changing; ``reader`` reads the pictures of texts that have some."""
        self.model = model
        self.inner = model.get_base_model() if hasattr(model, "peft_config") else model
        self._accepted = frozenset(inspect.signature(self.inner.forward).parameters)
        config = self.inner.config.get_text_config(decoder=True)
        self.positions = getattr(config, "max_position_embeddings", None)
        """Positions the model knows; None where they are not learnt."""
        self.placed = "position_ids" in self._accepted
        """Whether positions can be given."""
        self.caches, self.pads = True, True
        """Whether the model goes on from a cache, and reads texts of unlike length together: see ``ways.settle``."""
        self._scaled = rope.find_scaled(self.inner)
        self.images = None if reader is None else ImagePlacer(reader, decoder_of(self.inner))
        """Puts pictures into a pass; None for a model of text."""

    @property
    def resumable(self) -> bool:
        """Whether a text that goes on from another one is read as if the two were one."""
        return self.images is None or not self.images.prefix

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def read(self, texts: list[Tensor], shown: list[Sequence] | None = None) -> Prefill:
        """One forward pass over texts ``(n_i,)``, padded on the left; ``shown`` are the same with their pictures."""
        if not self.caches:
            width = max(text.numel() for text in texts)
            return Prefill(None, width, self.whole(texts, shown), False)
        lengths = torch.tensor([text.numel() for text in texts], device=self.device)  # (p,)
        width = int(lengths.max())
        mask = torch.arange(width, device=self.device) >= (width - lengths)[:, None]  # (p, width)
        ids = torch.zeros(len(texts), width, dtype=torch.long, device=self.device)
        for row, text in zip(ids, texts, strict=True):
            row[width - text.numel() :] = text
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        places = [torch.arange((row + 1) * width - text.numel(), (row + 1) * width) for row, text in enumerate(texts)]
        with self._pictures(shown, places, ids) as pictures:
            logits, cache = self.forward(ids, mask.long(), positions, None, pictures)
        return Prefill(cache, width, logits, self.placed and joinable(cache))

    def _pictures(
        self, shown: list[Sequence] | None, places: list[Tensor], ids: Tensor
    ) -> AbstractContextManager[dict[str, Any]]:
        """Arguments for the pictures of a pass over ``ids`` (rows, columns)."""
        if self.images is None or shown is None or not self.images.needs(shown):
            return nullcontext({})
        return self.images.placed(decoder_of(self.inner), Slots(shown, places, (ids.shape[0], ids.shape[1])), ids)

    def shift(self, sequence: Sequence) -> int:
        """By how much the positions behind a text differ from its length, for the pictures in it."""
        return 0 if self.images is None else self.images.shift(decoder_of(self.inner), sequence)

    def resume(self, texts: list[Tensor], prefixes: list[Prefix]) -> Prefill:
        """What ``read`` gives, from prefixes of the texts: each row reads as many tokens as the one with the most new.

        Prefixes that are not whole have to lack the same number of tokens.
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
        logits, cache = self.forward(ids, mask.long(), positions, SlotCache.of(prefixes, used, new))
        return Prefill(cache, width, logits, True)

    def factors(self, length: int) -> tuple[int, ...]:
        """A key of the rotary factors that a text of ``length`` tokens takes."""
        return rope.factors_of(self._scaled, length)

    def forward(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any, pictures: dict[str, Any] | None = None
    ) -> tuple[Tensor, Any]:
        """Logits of the last column, ``(n, V)``, and the cache that now holds ``ids`` ``(n, t)`` too.

        ``mask`` ``(n, T)`` covers the columns of the cache and the new ones, ``positions`` ``(n, t)`` the new ones.
        """
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": True}
        if cache is not None:
            arguments["past_key_values"] = cache
        # Some older architectures derive positions from the mask, or cannot leave out logits.
        arguments |= self._known(position_ids=positions, logits_to_keep=1) | (pictures or {})
        with rope.rows_of(self._kinds((positions[:, -1] + 1).tolist(), positions.shape[1])):
            output = self.model(**arguments)
        return output.logits[:, -1], output.past_key_values

    def whole(self, texts: list[Tensor], shown: list[Sequence] | None = None) -> Tensor:
        """Logits ``(n, V)`` of what follows each text, read as in training: padded on the right, without a cache."""
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
        """Whether a text of so many tokens takes other rotary factors than without its last, for all its tokens."""
        return any(rope.factors_of(self._scaled, n) != rope.factors_of(self._scaled, n - 1) for n in set(lengths))

    def _known(self, **optional: Any) -> dict[str, Any]:
        """Those arguments that the model takes, without the router loss: it cannot be computed of new columns alone."""
        optional["output_router_logits"] = False
        return {name: value for name, value in optional.items() if name in self._accepted}

    def _kinds(self, lengths: list[int], width: int | None = None) -> list[rope.Kind]:
        """Rows by the rotary factors that their texts take; ``width`` columns each, or as many as the longest needs."""
        rows: dict[tuple[int, ...], list[int]] = {}
        for row, length in enumerate(lengths if self._scaled else []):
            rows.setdefault(rope.factors_of(self._scaled, length), []).append(row)
        return [rope.Kind(width or max(lengths[row] for row in own), torch.tensor(own)) for own in rows.values()]

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Every module in evaluation mode and no gradient; each module is back in its own mode afterwards."""
        # Not inference_mode: tensors that a model or a wrapper caches under it could never take part in training.
        with evaluating(self.model), torch.no_grad(), grouped(self.inner), prepacked_weights(self.model):
            yield
