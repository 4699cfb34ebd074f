"""The forward pass of every method: sequences in, log-probabilities of their trained tokens out.

How the sequences are laid out is the core's business alone: behind each other where the model keeps them apart exactly
(checked against each row alone when the model is loaded), right-padded otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.contract.pad import pad_tokens, roles_of, texts_of, token_mask
from posttrain.contract.views import Example, Sequence, View, Views
from posttrain.errors import ModelError
from posttrain.network import attention, rope
from posttrain.network.chunked_head import Head, TokenQuery, token_statistics
from posttrain.network.embedding_noise import noised
from posttrain.network.images import ImagePlacer, Slots
from posttrain.network.modes import Modes
from posttrain.network.packing import PackedRow, beside, pack_sequences
from posttrain.network.routing import recorded, routing_sums
from posttrain.network.segments import Segments


class TokenModel(nn.Module):
    """A transformers model as the core sees it: hidden states of laid-out sequences, then the chunked head.

    ``model`` is a causal language model, a sequence classifier with one label (a reward head) or a token classifier
    with two (a head for steps), with or without adapters. ``extra`` are modules trained beside it. ``packed`` lays
    sequences behind each other without padding, ``shared`` computes common prompts once.
    """

    def __init__(self, model: Any, head: Head | None, packed: bool = False, shared: bool = False):
        super().__init__()
        self.extra = nn.Module()  # a ModuleDict has methods of its own, such as values
        self.model = model
        self.head = head
        self.packed = packed
        self.shared = shared
        self.modes: Modes | None = None
        """Which modules train in training mode; None for all."""
        self.place: torch.device | None = None
        """Where passes are computed, when the weights rest elsewhere."""
        self.noise_alpha = 0.0
        """NEFTune's alpha: noise on the embedded tokens in training mode; common prompts are then not shared."""
        self.scaled = rope.find_scaled(model)
        """Rotary modules whose factors depend on a row's length."""
        self.images: ImagePlacer | None = None
        """Puts pictures into a pass; None for a model of text."""

    def train(self, mode: bool = True) -> TokenModel:
        """Set the mode; in training, modules that would only make noise stay in evaluation mode."""
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
        """What gives the hidden states that the head takes."""
        return decoder_of(self.inner)

    @property
    def device(self) -> torch.device:
        """Where the inputs must go."""
        return self.place or self.inner.get_input_embeddings().weight.device

    def hidden(self, sequences: list[Sequence]) -> tuple[Tensor, list[Tensor]]:
        """Hidden states ``(N, H)`` of the layout's tokens, and for each sequence ``(n,)`` where its tokens lie."""
        kinds: dict[tuple[int, ...], list[int]] = {}  # rows by the rotary factors that they take
        for row, sequence in enumerate(sequences):
            kinds.setdefault(rope.factors_of(self.scaled, len(sequence)), []).append(row)
        alike = list(kinds.values())
        with self._noise(sequences, alike):
            if self.packed:
                states, places = packed_states(self.decoder, sequences, self.device, self.shared, alike, self.images)
            else:
                states, places = padded_states(self.decoder, sequences, self.device, alike, self.images)
        return self._as_weights(states), places

    def _noise(self, sequences: list[Sequence], kinds: list[list[int]]) -> AbstractContextManager[None]:
        """The noise of a training pass: each token's by the length of its own row, however rows are laid out."""
        if not (self.training and self.noise_alpha):
            return nullcontext()
        lengths = torch.tensor([len(s) for s in sequences])
        if self.packed:  # nothing is shared, so rows of one kind stand behind each other in their order
            order = torch.tensor([row for members in kinds for row in members])
            lengths = lengths[order].repeat_interleave(lengths[order])[None]  # (1, N)
        else:
            lengths = lengths[:, None]  # (R, 1)
        return noised(self.inner.get_input_embeddings(), self.noise_alpha, lengths)

    def _as_weights(self, states: Tensor) -> Tensor:
        """Hidden states in the weights' type, where a family (Mamba) keeps wider ones until its head."""
        kind = self.inner.get_input_embeddings().weight.dtype
        return states.to(kind) if kind in (torch.bfloat16, torch.float16) and states.dtype == torch.float32 else states

    def forward(self, sequences: list[Sequence], request: TokenQuery) -> dict[str, Tensor]:
        """Flat results over the trained tokens of all sequences in order: ``logps`` ``(n,)``, statistics, extras.

        With a reward head: ``score`` ``(R,)`` of each sequence's last token; with one for steps: ``scores`` ``(n,)``.
        Where it is asked for ``routing`` ``(2, E)`` (see ``routing.routing_sums``).
        """
        sequences = texts_of(sequences)
        if request.routing:
            return self._routed(sequences, request)
        return self._results(*self.hidden(sequences), sequences, request)

    def _routed(self, sequences: list[Sequence], request: TokenQuery) -> dict[str, Tensor]:
        with recorded(self.decoder) as layers:
            states, places = self.hidden(sequences)
        if not self.packed:
            real = token_mask([len(s) for s in sequences]).flatten().to(states.device)  # (R * L,)
            layers = [logits[real] for logits in layers]
        results = {} if request.only_routing else self._results(states, places, sequences, request)
        return results | {"routing": routing_sums(layers, places, request.routing)}

    def _results(
        self, states: Tensor, places: list[Tensor], sequences: list[Sequence], request: TokenQuery
    ) -> dict[str, Tensor]:
        if self.head is None:
            return self._scores(states, sequences, places)
        predicting, labels = _predicted(sequences, places, states.device)
        results = token_statistics(states[predicting], labels, self.head, request)
        if request.extras:
            for name, module in self.extra.named_children():
                results[name] = module(states[predicting].to(module_dtype(module))).reshape(-1)  # (n,)
        return results

    def _scores(self, states: Tensor, sequences: list[Sequence], places: list[Tensor]) -> dict[str, Tensor]:
        inner = self.inner
        classify = inner.score if hasattr(inner, "score") else inner.classifier
        if inner.config.num_labels == 1:
            last = torch.stack([place[-1] for place in places]).to(states.device)  # (R,)
            return {"score": _wide(classify(states[last])[:, 0])}  # (R,)
        at = torch.cat([place[s.trained] for place, s in zip(places, sequences, strict=True)]).to(states.device)  # (n,)
        logits = _wide(classify(states[at]))  # (n, 2): bad, good
        return {"scores": logits[:, 1] - logits[:, 0]}  # (n,)

    def logits(self, sequences: list[Sequence], temperature: float) -> Callable[[slice], Tensor]:
        """Logits ``(c, V)`` of the trained tokens, chunk by chunk and without gradient, as ``TokenQuery.others`` wants.

        The hidden states are computed now, the vocabulary projection when a chunk asks.
        """
        assert self.head is not None
        head, sequences = self.head, texts_of(sequences)
        with torch.no_grad():
            states, places = self.hidden(sequences)
            states = states[_predicted(sequences, places, states.device)[0]]  # (n, H)

        def chunk(at: slice) -> Tensor:
            with torch.no_grad():
                return head.logits(states[at]) / temperature

        return chunk


def module_dtype(module: nn.Module) -> torch.dtype:
    """Type of a module's weights; float32 for one without any."""
    return next((parameter.dtype for parameter in module.parameters()), torch.float32)


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _predicted(sequences: list[Sequence], places: list[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Where the hidden states ``(n,)`` lie that predict the trained tokens, and those tokens ``(n,)``."""
    trained = [s.trained.nonzero()[:, 0] for s in sequences]  # (t,) each
    predicting = torch.cat([place[at - 1] for place, at in zip(places, trained, strict=True)])
    labels = torch.cat([s.ids[at] for s, at in zip(sequences, trained, strict=True)])
    return predicting.to(device), labels.to(device)


def decoder_of(inner: Any) -> Any:
    """The part of a transformers model below its head."""
    # The prefix of some families names the part of a larger model that they are.
    return getattr(inner, inner.base_model_prefix, None) or inner.model


def packed_states(
    decoder: Any,
    sequences: list[Sequence],
    device: torch.device,
    share: bool,
    kinds: list[list[int]],
    images: ImagePlacer | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Hidden states ``(N, H)`` of sequences behind each other, and where the tokens of each lie."""
    rows = [pack_sequences([sequences[row] for row in members], share) for members in kinds]
    row = rows[0] if len(rows) == 1 else beside(rows, kinds)
    ids, positions = row.ids[None].to(device), row.positions[None].to(device)  # (1, N)
    inputs: dict[str, Any] = {"input_ids": ids, "position_ids": positions, "use_cache": False}
    placed = _placed(decoder, images, Slots(sequences, row.places, (1, len(row.ids))), ids)
    with rope.rows_of(_kinds(sequences, kinds, row)), placed as pictures:
        inputs |= pictures
        if decoder.config._attn_implementation != attention.NAME:
            return decoder(**inputs).last_hidden_state[0], row.places  # (N, H)
        # Of a row without a mask transformers would look for the beginnings of texts.
        inputs["attention_mask"] = torch.ones_like(ids)
        with attention.reading(Segments(row.lengths, row.parents, device)):
            return decoder(**inputs).last_hidden_state[0], row.places


def padded_states(
    decoder: nn.Module,
    sequences: list[Sequence],
    device: torch.device,
    kinds: list[list[int]],
    images: ImagePlacer | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Hidden states ``(N, H)`` of right-padded sequences, and where the tokens of each lie."""
    lengths = [len(s) for s in sequences]
    ids = nn.utils.rnn.pad_sequence([s.ids for s in sequences], batch_first=True).to(device)  # (R, L)
    mask = token_mask(lengths).to(device)  # (R, L)
    # What stands on the right is seen by nothing on its left. Hidden, it would see nothing itself where a window has
    # left the row, and some families' softmax over nothing is not a number.
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    columns = [torch.arange(n) + place * ids.shape[1] for place, n in enumerate(lengths)]
    placed = _placed(decoder, images, Slots(sequences, columns, (len(lengths), ids.shape[1])), ids)
    with rope.rows_of(_kinds(sequences, kinds, None)), placed as pictures:
        states = decoder(**inputs, **pictures).last_hidden_state  # (R, L, H)
    ends = torch.tensor(lengths).cumsum(0).tolist()
    return states[mask], [torch.arange(end - n, end) for n, end in zip(lengths, ends, strict=True)]


def _placed(
    decoder: Any, images: ImagePlacer | None, slots: Slots, ids: Tensor
) -> AbstractContextManager[dict[str, Any]]:
    """What the decoder is given for the pictures of a pass over ``ids``; nothing where there are none."""
    if images is None and any(sequence.images for sequence in slots.sequences):
        raise ModelError(
            f"{type(decoder).__name__} reads text alone, and a row has images. Expected a vision-language model with "
            "its processor, also for a teacher or a reference."
        )
    if images is None or not images.needs(slots.sequences):
        return nullcontext({})
    return images.placed(decoder, slots, ids)


def _kinds(sequences: list[Sequence], kinds: list[list[int]], row: PackedRow | None) -> list[rope.Kind]:
    """The rows of a pass by the rotary factors that they take; ``row`` is None for a padded one."""
    found = []
    for members in kinds:
        places = None if row is None else torch.cat([row.places[one] for one in members]).unique()
        found.append(rope.Kind(max(len(sequences[one]) for one in members), torch.tensor(members), places))
    return found


def build_views(examples: list[Example], results: dict[str, Tensor]) -> Views:
    """Turn the flat results of a forward pass into one padded view per role."""
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
        # A reward model has no log-probabilities: whoever reads them shall see it in the numbers.
        fields.setdefault("logps", torch.full(mask.shape, torch.nan, device=device))
        if len(sequences) > len(examples):
            fields["counts"] = torch.tensor([len(e.sequences[role]) for e in examples], device=device)  # (B,)
        views[role] = View(mask=mask, **fields)
        token, row = span.stop, row + len(sequences)
    return Views(**views)
