"""A transformers model as the generator sees it: tokens and a cache in, logits and the cache out."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posttrain.errors import ModelError
from posttrain.generation.local.attention import grouped
from posttrain.generation.local.cache import SlotCache, joinable
from posttrain.network import rope
from posttrain.network.kernels.cpu.onednn_weights import prepacked_weights
from posttrain.network.modes import evaluating


@dataclass
class Prefill:
    """Texts that the model has read."""

    cache: Any
    """Their keys and values, padded on the left."""
    width: int
    """Columns of the cache."""
    logits: Tensor
    """What follows each text, ``(p, V)``."""
    joinable: bool
    """Whether rows of the cache can be laid next to those of another one."""


class Network:
    """The model behind a generator, with or without an adapter around it."""

    def __init__(self, model: Any):
        """Wrap ``model``, whose weights may go on changing."""
        self.model = model
        self.inner = model.get_base_model() if hasattr(model, "peft_config") else model
        self._accepted = frozenset(inspect.signature(self.inner.forward).parameters)
        config = self.inner.config.get_text_config(decoder=True)
        self.positions = getattr(config, "max_position_embeddings", None)
        """Positions the model knows; None where they are not learnt."""
        self.placed = "position_ids" in self._accepted
        """Whether positions can be given."""
        self._pads = None if not self.placed or config._attn_implementation == "eager" else True
        self._scaled = rope.find_scaled(self.inner)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def pads(self) -> bool:
        """Whether texts of unlike length can be read together; tried once where that is in doubt.

        Positions that a model counts by columns are off behind padding, and some families' own attention gives what is
        not a number for padding, which sees nothing.
        """
        if self._pads is None:
            texts = [torch.arange(n, device=self.device) + 1 for n in (7, 3)]
            alone, together = self.read(texts[1:]).logits[0].float(), self.read(texts).logits[1].float()  # (V,)
            self._pads = bool((together - alone).abs().max() <= 0.05 * alone.abs().max())
        return self._pads

    def read(self, texts: list[Tensor]) -> Prefill:
        """One forward pass over texts ``(n_i,)``, padded on the left."""
        lengths = torch.tensor([text.numel() for text in texts], device=self.device)  # (p,)
        width = int(lengths.max())
        mask = torch.arange(width, device=self.device) >= (width - lengths)[:, None]  # (p, width)
        ids = torch.zeros(len(texts), width, dtype=torch.long, device=self.device)
        for row, text in zip(ids, texts, strict=True):
            row[width - text.numel() :] = text
        logits, cache = self.forward(ids, mask.long(), (mask.cumsum(-1) - 1).clamp(min=0), None)
        return Prefill(cache, width, logits, self.placed and joinable(cache))

    def forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Logits of the last column, ``(n, V)``, and the cache that now holds ``ids`` ``(n, t)`` too.

        ``mask`` ``(n, T)`` covers the columns of the cache and the new ones, ``positions`` ``(n, t)`` the new ones.
        """
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": True}
        if cache is not None:
            arguments["past_key_values"] = cache
        # Some older architectures derive positions from the mask, or cannot leave out logits. The router loss that a
        # mixture's configuration may ask for cannot be computed of new columns alone.
        optional = {"position_ids": positions, "logits_to_keep": 1, "output_router_logits": False}
        arguments |= {name: value for name, value in optional.items() if name in self._accepted}
        with rope.rows_of(self._kinds(positions)):
            try:
                output = self.model(**arguments)
            except (RuntimeError, ValueError) as error:
                usual = isinstance(cache, SlotCache) or (cache is None and self.placed)
                if usual or isinstance(error, torch.OutOfMemoryError):
                    raise
                first = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise ModelError(
                    f"{type(self.inner).__name__} cannot sample several texts together ({first}). Train this one with "
                    "an offline method."
                ) from None
        if getattr(output, "past_key_values", None) is None:
            raise ModelError(
                f"{type(self.inner).__name__} gives back no past_key_values, which sampling goes on from. Expected a "
                "causal language model that keeps keys and values; train this one with an offline method."
            )
        return output.logits[:, -1], output.past_key_values

    def _kinds(self, positions: Tensor) -> list[rope.Kind]:
        """Rows by the rotary factors that their texts, as long as they are now, take."""
        lengths = (positions[:, -1] + 1).tolist() if self._scaled else []
        rows: dict[tuple[int, ...], list[int]] = {}
        for row, length in enumerate(lengths):
            rows.setdefault(rope.factors_of(self._scaled, length), []).append(row)
        return [rope.Kind(positions.shape[1], torch.tensor(own)) for own in rows.values()]

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Every module in evaluation mode and no gradient; each module is back in its own mode afterwards."""
        # Not inference_mode: tensors that a model or a wrapper caches under it could never take part in training.
        with evaluating(self.model), torch.no_grad(), grouped(self.inner), prepacked_weights(self.model):
            yield
