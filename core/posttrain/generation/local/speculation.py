"""Speculative decoding: several tokens are guessed, one pass of the model reads them, and those that are right stay.

Sources: Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318. On a processor that spends a step
on reading the weights, a pass over a few tokens costs hardly more than over one.

A looked-up guess is checked against the token that the sample would have drawn anyway, with its own random number: the
same tokens as without, and accepted as often as by the rule of these papers, since its distribution is a single point.
A draft model's guess is drawn, accepted and replaced with three numbers of its place. Both models have then read the
same tokens, and the guess behind the last one that was read is judged like the others. So a token depends on its text
and its random numbers alone, not on how many were guessed together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.contract.generation import Sampling
from posttrain.contract.images import Image
from posttrain.errors import ModelError, SettingsError
from posttrain.generation.local.batch import Batch
from posttrain.generation.local.lookup import Index, Lookup
from posttrain.generation.local.prefill import Network, Prefill
from posttrain.generation.local.sample import Sample, Stops
from posttrain.generation.local.sampling import accept, choose, propose
from posttrain.generation.local.ways import settle, takes_back

#: Tokens that a pass reads in the time that its weights take alone.
FREE_TOKENS = {"cpu": 24}
FREE_TOKENS_ELSEWHERE = 256
#: Weight of the newest guess in ``Sample.accepted``.
NEWEST = 1 / 8


@dataclass
class Speculation:
    """How a generator guesses, and what became of its guesses."""

    kind: Literal["ngram", "draft"]
    tokens: int
    """Most tokens that are guessed for a pass."""
    draft: Network | None = None
    """A smaller model with the same tokeniser."""
    name: str = ""
    """Name of that model."""
    tried: int = field(default=0, compare=False)
    """Guesses that were read and looked at."""
    right: int = field(default=0, compare=False)
    """Those of them that stayed."""

    def __post_init__(self):
        if not 1 <= self.tokens <= 64:
            raise SettingsError(f"speculate-tokens is {self.tokens}, expected a number from 1 to 64.")

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Put the draft model into the state that sampling needs."""
        if self.draft is None:
            yield
            return
        with self.draft.sampling():
            yield

    def begin(self, prompt: Tensor, samples: list[Sample], images: tuple[Image, ...]) -> None:
        """Prepare new samples of one prompt ``(n,)``. Raises SettingsError for images, which no draft model sees."""
        if self.kind == "ngram":
            index = Index(prompt.tolist())
            for sample in samples:
                sample.lookup = Lookup(index)
        elif images:
            raise SettingsError(
                "speculate is 'draft' and a prompt has images, which a draft model does not see. Use --speculate ngram."
            )

    def facts(self) -> dict[str, int]:
        """Return how many guesses were read and looked at, and how many of them stayed."""
        return {"speculated_tokens": self.tried, "accepted_tokens": self.right}


@dataclass
class Guess:
    """Tokens guessed for the samples of a batch, of which ``read`` are read with the newest token of each."""

    tokens: list[list[int]]
    """Guessed tokens of each sample; the one behind those that are read may be among them."""
    read: int
    chances: Tensor | None = None
    """Probabilities ``(n, 1 + read, V)`` that a draft model drew them with; None for guesses without chance."""
    tried: int = 0
    """Guesses that were read and looked at."""
    right: int = 0
    """Those of them that stayed."""

    @property
    def following(self) -> list[list[int]]:
        """Guessed tokens that are read."""
        return [own[: self.read] for own in self.tokens]

    def judge(self, row: int, column: int, token: int, sample: Sample) -> bool:
        """Count whether ``token`` was guessed; return whether the logits behind it are at hand."""
        if column >= len(self.tokens[row]):
            return False
        right = self.tokens[row][column] == token
        sample.accepted += (right - sample.accepted) * NEWEST
        self.tried += column < self.read
        self.right += right and column < self.read
        return right and column < self.read


class Speculator:
    """Guesses for the samples of one decoder."""

    def __init__(self, speculation: Speculation, network: Network, sampling: Sampling):
        """Start without samples."""
        self.speculation, self.network, self.sampling = speculation, network, sampling
        self.batch = None if speculation.draft is None else Batch(speculation.draft)
        """Samples as the draft model has read them, in the same rows as those of the model."""
        self.cost = 0.0 if speculation.draft is None else _size(speculation.draft) / _size(network)
        """Time of a pass of the draft model, as a share of one of the model."""
        self.vocabulary = network.inner.get_output_embeddings().weight.shape[0]
        self._checked = False

    def check(self, joinable: bool) -> None:
        """Raise SettingsError where a model cannot take back tokens; ``joinable``: its cache lets rows join."""
        if self._checked:
            return
        self._checked = True
        kind = self.speculation.kind
        if not joinable or not takes_back(self.network):
            raise SettingsError(
                f"speculate is '{kind}', but {type(self.network.inner).__name__} cannot take back tokens that it has "
                "read: its cache is not of keys and values alone. Leave --speculate out."
            )
        draft = self.speculation.draft
        if draft is None:
            return
        settle(draft)
        if not draft.pads or not takes_back(draft):
            raise ModelError(
                f"draft-model is '{self.speculation.name}', but {type(draft.inner).__name__} cannot take back tokens "
                "that it has read. Choose a draft model with attention in every layer, or --speculate ngram."
            )

    def read(self, texts: list[Tensor]) -> Prefill | None:
        """Let the draft model read texts ``(n_i,)``; None without one."""
        if self.batch is None:
            return None
        return self.batch.network.read([self._known(text) for text in texts])

    def first(self, stem: Prefill | None, rows: list[int], samples: list[Sample]) -> Guess | None:
        """Guess the token after the texts in ``rows`` of ``stem``."""
        if stem is None:
            return None
        tokens, chances = self._draw(stem.logits[rows], samples, 0)
        return Guess([[token] for token in tokens], 0, None if self.sampling.greedy else chances[:, None])

    def guess(self, samples: list[Sample], most: int) -> Guess:
        """Guess tokens for samples, of which at most ``most`` are read."""
        most = max(0, min(self.speculation.tokens, most))
        room = [min(most, sample.limit - len(sample.ids) - 1) for sample in samples]
        if self.batch is not None:
            return self._drafted(samples, self._worth(samples, room))
        tokens = [
            [] if sample.lookup is None else sample.lookup.guess(own + 1)
            for sample, own in zip(samples, room, strict=True)
        ]
        lengths = [min(len(own), left) for own, left in zip(tokens, room, strict=True)]
        read = self._worth(samples, lengths)
        tokens = [own[: min(read, left) + 1] for own, left in zip(tokens, room, strict=True)]
        return Guess(tokens, read)

    def _drafted(self, samples: list[Sample], read: int) -> Guess:
        """Let the draft model make ``1 + read`` tokens of each sample, of which it reads all but the last."""
        assert self.batch is not None
        self.batch.reserve(1 + read)
        columns, chances = [[sample.ids[-1] for sample in samples]], []
        for place in range(1 + read):
            logits = self.batch.read([[min(token, self._last)] for token in columns[-1]])[:, 0]
            tokens, own = self._draw(logits, samples, place)
            columns.append(tokens)
            chances.append(own)
        guessed = [list(row) for row in zip(*columns[1:], strict=True)]
        return Guess(guessed, read, None if self.sampling.greedy else torch.stack(chances, 1))

    def _draw(self, logits: Tensor, samples: list[Sample], ahead: int) -> tuple[list[int], Tensor]:
        """Draw a token of each sample from the draft's logits ``(n, W)``; return them and their chances ``(n, V)``."""
        missing = self.vocabulary - logits.size(1)  # sizes of one family pad their vocabularies differently
        logits = F.pad(logits, (0, missing), value=-torch.inf) if missing > 0 else logits[:, : self.vocabulary]
        if self.sampling.greedy:
            return logits.argmax(-1).tolist(), logits
        tokens, chances = propose(logits, self.sampling, [sample.draw(ahead)[0] for sample in samples])
        return tokens.tolist(), chances

    @property
    def _last(self) -> int:
        """The last token that the draft model knows; only a sampler that is still random draws others."""
        assert self.batch is not None
        return self.batch.network.inner.get_input_embeddings().weight.shape[0] - 1

    def _known(self, text: Tensor) -> Tensor:
        return text.clamp(max=self._last)

    def _worth(self, samples: list[Sample], lengths: list[int]) -> int:
        """Return how many guessed tokens to read, of ``lengths`` at hand: the most tokens for the time, by the past."""
        kind = self.network.device.type
        while any(self.network.outgrown([s.length + i for s in samples]) for i in range(1, 1 + max(lengths))):
            lengths = [min(own, max(lengths) - 1) for own in lengths]  # beyond, all tokens get other rotary factors
        each = len(samples) / FREE_TOKENS.get(kind, FREE_TOKENS_ELSEWHERE)
        best, found, tokens = 0.0, 0, 0.0
        for read in range(1 + max(lengths)):
            tokens += sum(s.accepted**read for s, own in zip(samples, lengths, strict=True) if own >= read)
            time = 1 + each * (1 + read) + self.cost * (1 + each) * (1 + read)
            if tokens / time > best:
                best, found = tokens / time, read
        return found

    def keep(self, counts: list[int], guess: Guess) -> None:
        """Bring the draft model to the tokens that each sample got, without those that are done; count the guesses."""
        self.speculation.tried += guess.tried
        self.speculation.right += guess.right
        if self.batch is not None:
            self.batch.keep(counts)
            self.batch.remove_done()


def _size(network: Network) -> int:
    return max(1, sum(parameter.numel() for parameter in network.model.parameters()))


def extend(
    samples: list[Sample], logits: Tensor, sampling: Sampling, guess: Guess | None, stops: Stops, version: int
) -> list[int]:
    """Choose the next token of every sample from ``logits`` ``(n, t, V)``, and further ones while guesses are right.

    Returns how many tokens each sample got.
    """
    counts = [0] * len(samples)
    rows = list(range(len(samples)))
    for column in range(logits.size(1)):
        tokens, logps = _choose([samples[row] for row in rows], logits[rows, column], sampling, guess, rows, column)
        going = []
        for row, token, logp in zip(rows, tokens.tolist(), logps.tolist(), strict=True):
            sample = samples[row]
            if sample.alive:
                sample.append(token, logp, stops, version)
                counts[row] += 1
            if guess is not None and guess.judge(row, column, token, sample) and sample.alive:
                going.append(row)
        rows = going
        if not rows:
            break
    return counts


def _choose(
    samples: list[Sample], logits: Tensor, sampling: Sampling, guess: Guess | None, rows: list[int], column: int
) -> tuple[Tensor, Tensor]:
    """Choose one token per row of ``logits`` ``(k, V)``, ``rows`` of the batch: ``(tokens (k,), logps (k,))``."""
    if guess is None or guess.chances is None:
        return choose(logits, sampling, [sample.random.random() for sample in samples])
    proposed = torch.tensor([guess.tokens[row][column] for row in rows], device=logits.device)  # (k,)
    return accept(logits, sampling, proposed, guess.chances[rows, column], [sample.draw(0)[1:] for sample in samples])
