"""Forward pass of every method: sequences in, log-probabilities of their trained tokens out.

The layout of the sequences is internal: packed where the model separates them exactly (checked against each row alone
when the model is loaded), right-padded otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.contract.pad import pad_tokens, roles_of, texts_of, token_mask
from posttrain.contract.views import Example, Sequence, View, Views
from posttrain.errors import ModelError
from posttrain.network import attention, replay, rope
from posttrain.network.chunked_head import Head, TokenQuery, token_statistics
from posttrain.network.context import Context
from posttrain.network.embedding_noise import noised
from posttrain.network.images import ImagePlacer, Slots
from posttrain.network.modes import Modes
from posttrain.network.packing import PackedRow, beside, pack_sequences
from posttrain.network.routing import Routers, recorded, routing_sums
from posttrain.network.segments import Segments


class TokenModel(nn.Module):
    """A transformers model for the core: hidden states of packed or padded sequences, then the chunked head.

    ``model`` is a causal language model, a sequence classifier with one label (a reward head) or a token classifier
    with two (a head for steps), with or without adapters. ``extra`` are modules trained beside it. ``packed`` packs
    sequences without padding, ``shared`` computes common prompts once.
    """

    def __init__(self, model: Any, head: Head | None, packed: bool = False, shared: bool = False):
        super().__init__()
        self.extra = nn.Module()  # a ModuleDict has methods of its own, such as values
        self.model = model
        self.head = head
        self.packed = packed
        self.shared = shared
        self.modes: Modes | None = None
        """Modules in training mode during training; None for all."""
        self.place: torch.device | None = None
        """Device of the passes, when the weights are kept elsewhere."""
        self.noise_alpha = 0.0
        """NEFTune's alpha: noise on the embedded tokens in training mode; common prompts are then not shared."""
        self.scaled = rope.find_scaled(model)
        """Rotary modules with length-dependent factors."""
        self.images: ImagePlacer | None = None
        """Inserts images into a pass; None for a text model."""
        self.routers: Routers | None = None
        """Routers that can be recorded; None for a model without experts."""
        self.context: Context | None = None
        """Processes over which each packed row is cut; None where this one computes all of it."""

    def train(self, mode: bool = True) -> TokenModel:
        """Set the mode; in training, modules that only make noise stay in evaluation mode."""
        super().train(mode)
        if mode and self.modes is not None:
            self.modes.train()
        return self

    @property
    def inner(self) -> Any:
        """The transformers model below any adapters."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    @property
    def decoder(self) -> Any:
        """Part of the model that computes the hidden states for the head."""
        return decoder_of(self.inner)

    @property
    def device(self) -> torch.device:
        """Device of the inputs."""
        return self.place or self.inner.get_input_embeddings().weight.device

    def hidden(self, sequences: list[Sequence]) -> tuple[Tensor, list[Tensor]]:
        """Compute hidden states ``(N, H)`` of the packed or padded tokens, and each sequence's indices ``(n,)``.

        Of a row that is cut over processes the states are those of this one's part; the indices are the row's.
        """
        kinds: dict[tuple[int, ...], list[int]] = {}  # rows by the rotary factors that they take
        for row, sequence in enumerate(sequences):
            kinds.setdefault(rope.factors_of(self.scaled, len(sequence)), []).append(row)
        alike = list(kinds.values())
        with self._noise(sequences, alike):
            if self.packed:
                extra = (self.images, self.context)
                states, places = packed_states(self.decoder, sequences, self.device, self.shared, alike, *extra)
            else:
                states, places = padded_states(self.decoder, sequences, self.device, alike, self.images)
        return self._as_weights(states), places

    def _noise(self, sequences: list[Sequence], kinds: list[list[int]]) -> AbstractContextManager[None]:
        """Return the context of a training pass's noise: each token's by the length of its own row, in any layout."""
        if not (self.training and self.noise_alpha):
            return nullcontext()
        lengths = torch.tensor([len(s) for s in sequences])
        if self.packed:  # nothing is shared, so rows of one kind follow each other in their order
            order = torch.tensor([row for members in kinds for row in members])
            lengths = lengths[order].repeat_interleave(lengths[order])[None]  # (1, N)
        else:
            lengths = lengths[:, None]  # (R, 1)
        return noised(self.inner.get_input_embeddings(), self.noise_alpha, lengths)

    def _as_weights(self, states: Tensor) -> Tensor:
        """Cast hidden states to the weights' dtype, where a family (Mamba) keeps wider ones until its head."""
        kind = self.inner.get_input_embeddings().weight.dtype
        return states.to(kind) if kind in (torch.bfloat16, torch.float16) and states.dtype == torch.float32 else states

    def forward(self, sequences: list[Sequence], request: TokenQuery) -> dict[str, Tensor]:
        """Compute flat results over all sequences' trained tokens in order: ``logps`` ``(n,)``, statistics, extras.

        With a reward head: ``score`` ``(R,)`` of each sequence's last token; with one for steps: ``scores`` ``(n,)``.
        On request ``routing`` ``(2, E)`` (see ``routing.routing_sums``) and ``load`` ``(L, E + 3)`` (see
        ``routing.Routers.load``).
        """
        sequences = texts_of(sequences) if request.replay else _choosing(texts_of(sequences))
        if request.routing or (request.load and self.routers is not None):
            return self._routed(sequences, request)
        return self._results(*self.hidden(sequences), sequences, request)

    def _routed(self, sequences: list[Sequence], request: TokenQuery) -> dict[str, Tensor]:
        with ExitStack() as stack:
            layers = stack.enter_context(recorded(self.decoder)) if request.routing else []
            routed = stack.enter_context(self.routers.watched()) if request.load and self.routers is not None else []
            states, places = self.hidden(sequences)
        results = {} if request.only_routing else self._results(states, places, sequences, request)
        if not self.packed:  # the routers have seen the padding too
            length = max(len(s) for s in sequences)
            places = [torch.arange(len(s)) + row * length for row, s in enumerate(sequences)]
        elif self.context is not None:
            places = self.context.own(places, len(states))
        if request.routing:
            results["routing"] = routing_sums(layers, places, request.routing)
        if routed:
            assert self.routers is not None
            results["load"] = self.routers.load(routed, places)
        if self.context is not None:
            results |= {name: self.context.sum(results[name]) for name in ("routing", "load") if name in results}
        return results

    def _results(
        self, states: Tensor, places: list[Tensor], sequences: list[Sequence], request: TokenQuery
    ) -> dict[str, Tensor]:
        if self.head is None:
            return self._scores(states, sequences, places)
        predicting, labels = _predicted(sequences, places, states.device)

        def compute(chosen: Tensor, index: Tensor | slice) -> dict[str, Tensor]:
            assert self.head is not None
            results = token_statistics(chosen, labels[index], self.head, request)
            if request.extras:
                for name, module in self.extra.named_children():
                    results[name] = module(chosen.to(module_dtype(module))).reshape(-1)  # (n,)
            return results

        return self._by_token(predicting, states, compute)

    def _by_token(
        self, places: Tensor, states: Tensor, compute: Callable[[Tensor, Tensor | slice], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Call ``compute`` with the states at ``places`` ``(k,)`` and which of the places they are."""
        if self.context is None:
            return compute(states[places], slice(None))
        return self.context.spread(places, states, compute)

    def _scores(self, states: Tensor, sequences: list[Sequence], places: list[Tensor]) -> dict[str, Tensor]:
        inner = self.inner
        classify = inner.score if hasattr(inner, "score") else inner.classifier
        if inner.config.num_labels == 1:
            last = torch.stack([place[-1] for place in places]).to(states.device)  # (R,)
            return self._by_token(last, states, lambda chosen, _: {"score": _wide(classify(chosen)[:, 0])})  # (R,)
        at = torch.cat([place[s.trained] for place, s in zip(places, sequences, strict=True)]).to(states.device)  # (n,)

        def compute(chosen: Tensor, _: Tensor | slice) -> dict[str, Tensor]:
            logits = _wide(classify(chosen))  # (n, 2): bad, good
            return {"scores": logits[:, 1] - logits[:, 0]}  # (n,)

        return self._by_token(at, states, compute)

    def logits(self, sequences: list[Sequence], temperature: float) -> Callable[[slice], Tensor]:
        """Return a function from a chunk to logits ``(c, V)`` of trained tokens, without gradient
        (``TokenQuery.others``).

        The hidden states are computed now, the vocabulary projection at each call.
        """
        assert self.head is not None
        assert self.context is None  # methods that want them are refused where rows are cut
        head, sequences = self.head, _choosing(texts_of(sequences))
        with torch.no_grad():
            states, places = self.hidden(sequences)
            states = states[_predicted(sequences, places, states.device)[0]]  # (n, H)

        def chunk(at: slice) -> Tensor:
            with torch.no_grad():
                return head.logits(states[at]) / temperature

        return chunk


def module_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype of a module's weights; float32 for one without any."""
    return next((parameter.dtype for parameter in module.parameters()), torch.float32)


def _choosing(sequences: list[Sequence]) -> list[Sequence]:
    """Return ``sequences`` without the experts that they carry: the routers choose."""
    if all(sequence.experts is None for sequence in sequences):
        return sequences
    return [dataclasses.replace(sequence, experts=None) for sequence in sequences]


def _replayed(
    sequences: list[Sequence], places: list[Tensor], count: int, part: slice = slice(None)
) -> AbstractContextManager[None]:
    """Return the context of a pass over ``count`` tokens in which the routers take the sequences' experts."""
    experts = [sequence.experts for sequence in sequences]
    if all(one is None for one in experts):
        return nullcontext()
    return replay.replaying(replay.arranged(experts, places, count, part))


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _predicted(sequences: list[Sequence], places: list[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the indices ``(n,)`` of hidden states that predict the trained tokens, and those tokens ``(n,)``."""
    trained = [s.trained.nonzero()[:, 0] for s in sequences]  # (t,) each
    predicting = torch.cat([place[at - 1] for place, at in zip(places, trained, strict=True)])
    labels = torch.cat([s.ids[at] for s, at in zip(sequences, trained, strict=True)])
    return predicting.to(device), labels.to(device)


def decoder_of(inner: Any) -> Any:
    """Return the part of a transformers model below its head."""
    # The prefix of some families names a part of a larger model, which they are themselves.
    return getattr(inner, inner.base_model_prefix, None) or inner.model


def packed_states(
    decoder: Any,
    sequences: list[Sequence],
    device: torch.device,
    share: bool,
    kinds: list[list[int]],
    images: ImagePlacer | None = None,
    context: Context | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Compute hidden states ``(N, H)`` of packed sequences, and the token indices of each.

    With ``context`` the states are those of this process's part of the row.
    """
    rows = [pack_sequences([sequences[row] for row in members], share) for members in kinds]
    row = rows[0] if len(rows) == 1 else beside(rows, kinds)
    part = slice(None)
    if context is not None:
        row = context.padded(row)
        part = context.part(len(row.ids))
    ids, positions = row.ids[None, part].to(device), row.positions[None, part].to(device)  # (1, N)
    inputs: dict[str, Any] = {"input_ids": ids, "position_ids": positions, "use_cache": False}
    placed = place_images(decoder, images, Slots(sequences, row.places, (1, len(row.ids))), ids)
    replayed = _replayed(sequences, row.places, len(row.ids), part)
    with rope.rows_of(_kinds(sequences, kinds, row)), replayed, placed as pictures:
        inputs |= pictures
        if decoder.config._attn_implementation != attention.NAME:
            return decoder(**inputs).last_hidden_state[0], row.places  # (N, H)
        # Without a mask transformers would search the row for beginnings of texts.
        inputs["attention_mask"] = torch.ones_like(ids)
        with attention.reading(Segments(row.lengths, row.parents, device, context)):
            return decoder(**inputs).last_hidden_state[0], row.places


def padded_states(
    decoder: nn.Module,
    sequences: list[Sequence],
    device: torch.device,
    kinds: list[list[int]],
    images: ImagePlacer | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Compute hidden states ``(N, H)`` of right-padded sequences, and the token indices of each."""
    lengths = [len(s) for s in sequences]
    ids = nn.utils.rnn.pad_sequence([s.ids for s in sequences], batch_first=True).to(device)  # (R, L)
    mask = token_mask(lengths).to(device)  # (R, L)
    # Tokens on the right are seen by none on their left. Masked, padding would see nothing itself where a window has
    # left the row, and some families' softmax over nothing is NaN.
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    columns = [torch.arange(n) + place * ids.shape[1] for place, n in enumerate(lengths)]
    placed = place_images(decoder, images, Slots(sequences, columns, (len(lengths), ids.shape[1])), ids)
    with rope.rows_of(_kinds(sequences, kinds, None)), _replayed(sequences, columns, ids.numel()), placed as pictures:
        states = decoder(**inputs, **pictures).last_hidden_state  # (R, L, H)
    ends = torch.tensor(lengths).cumsum(0).tolist()
    return states[mask], [torch.arange(end - n, end) for n, end in zip(lengths, ends, strict=True)]


def place_images(
    decoder: Any, images: ImagePlacer | None, slots: Slots, ids: Tensor
) -> AbstractContextManager[dict[str, Any]]:
    """Return a context with the decoder's arguments for the images of a pass over ``ids``; empty without images."""
    if images is None and any(sequence.images for sequence in slots.sequences):
        raise ModelError(
            f"{type(decoder).__name__} reads text alone, and a row has images. Expected a vision-language model with "
            "its processor, also for a teacher or a reference."
        )
    if images is None or not images.needs(slots.sequences):
        return nullcontext({})
    return images.placed(decoder, slots, ids)


def _kinds(sequences: list[Sequence], kinds: list[list[int]], row: PackedRow | None) -> list[rope.Kind]:
    """Group the rows of a pass by their rotary factors; ``row`` is None for a padded one."""
    found = []
    for members in kinds:
        places = None if row is None else torch.cat([row.places[one] for one in members]).unique()
        found.append(rope.Kind(max(len(sequences[one]) for one in members), torch.tensor(members), places))
    return found


def build_views(examples: list[Example], results: dict[str, Tensor]) -> Views:
    """Split the flat results of a forward pass into one padded view per role."""
    views, token, row = {}, 0, 0
    device = next(iter(results.values())).device
    for role in roles_of(examples):
        sequences = [s for e in examples for s in e.sequences[role]]
        counts = [s.count for s in sequences]
        mask = token_mask(counts).to(device)  # (R, T)
        span = slice(token, token + sum(counts))
        fields: dict[str, Any] = {n: pad_tokens(v[span], mask) for n, v in results.items() if n != "score"}
        if "score" in results:
            fields["score"] = results["score"][row : row + len(sequences)]  # (R,)
        turns = [s.turn for s in sequences]
        if any(len(turn) and int(turn[-1]) for turn in turns):
            fields["turn"] = pad_tokens(torch.cat(turns).to(device), mask)  # (R, T)
        # A reward model has no log-probabilities: NaN shows it to whoever reads them.
        fields.setdefault("logps", torch.full(mask.shape, torch.nan, device=device))
        if len(sequences) > len(examples):
            fields["counts"] = torch.tensor([len(e.sequences[role]) for e in examples], device=device)  # (B,)
        views[role] = View(mask=mask, **fields)
        token, row = span.stop, row + len(sequences)
    return Views(**views)
