"""Which text is read when, and which sample grows when: batching that does not wait for the longest."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from posttrain.contract.generation import Sampling
from posttrain.contract.views import Sequence
from posttrain.generation.local.batch import Batch
from posttrain.generation.local.cache import affordable_tokens
from posttrain.generation.local.prefill import Network, Prefill
from posttrain.generation.local.prefixes import Prefix, Prefixes, prefix_of
from posttrain.generation.local.sample import Sample, Stops
from posttrain.generation.local.sampling import choose
from posttrain.generation.local.ways import resumes, settle

#: Tokens of prompts, padding included, that one forward pass reads: enough to keep the machine busy, and so few that
#: prompts of about the same length meet.
READ_TOKENS = {"cpu": 512}
READ_TOKENS_ELSEWHERE = 8192

#: Share of the batch that has to be free before further prompts are read into it.
FREE_SHARE = 1 / 8

#: Columns of room that a sample has to find when it joins, so that it is not sent away again at once.
HEADROOM = 64


@dataclass
class Group:
    """Samples that wait and have the same text so far."""

    text: Tensor
    """``(n,)``"""
    samples: list[Sample]
    stem: Prefill | None = None
    """Where the text has been read already."""
    row: int = 0
    """Its row of ``stem``."""
    prefix: Prefix | None = None
    """What has been read of the text in an earlier call."""

    @property
    def shown(self) -> Sequence:
        """The text with its pictures."""
        return self.samples[0].shown_as(self.text)

    @property
    def content(self) -> bytes:
        """What equal texts with equal pictures have in common."""
        return self.shown.content.numpy().tobytes()

    @property
    def unread(self) -> int:
        """Tokens that the model has to read before the first sample grows."""
        return self.text.numel() - (0 if self.prefix is None else self.prefix.tokens)


class Decoder:
    """Completes groups of samples, at most ``batch_size`` at a time.

    ``cache_tokens`` bounds the columns of the batch's cache over all rows, padding included; None takes what a quarter
    of the memory holds. Where they run out, the sample with the fewest tokens waits again and is read anew later. A
    sample that is alone goes on whatever it needs.
    """

    def __init__(
        self,
        network: Network,
        sampling: Sampling,
        stops: Stops,
        batch_size: int,
        cache_tokens: int | None,
        version: int = -1,
        prefixes: Prefixes | None = None,
    ):
        """Nothing waits yet. ``prefixes`` holds what earlier calls have read, and is given what these samples leave."""
        self.prefixes = prefixes
        self.version = version
        """Of the weights that make the next token."""
        self.network = network
        self.sampling = sampling
        self.stops = stops
        self.batch_size = batch_size
        self.cache_tokens = cache_tokens
        self.batch = Batch(network)
        self.waiting: deque[Group] = deque()
        self._measured = cache_tokens is not None
        self._joinable = True  # until the first cache says otherwise

    def run(self, groups: list[Group]) -> None:
        """Complete all samples of ``groups``; those with like lengths should lie next to each other."""
        self.add(groups)
        while self.advance():
            pass

    def add(self, groups: Iterable[Group]) -> None:
        """Let groups wait, each behind what has been read of it already."""
        for group in groups:
            if self.prefixes is not None and self.network.resumable and not group.samples[0].images:
                group.prefix = self._known(group.text)
            self.waiting.append(group)

    def renew(self, version: int) -> None:
        """Go on with other weights: what is in the making keeps what it has read, what waits is read anew."""
        self.version = version
        for group in self.waiting:
            group.prefix = None

    def advance(self) -> bool:
        """Let samples join and make one token of each in the batch; False where nothing is left to do."""
        self._admit()
        if self.batch.samples:
            self._step()
        return bool(self.waiting or self.batch.samples)

    def _admit(self) -> None:
        """Let samples join while there is room for them."""
        while self.waiting and self.batch.open:
            group = self.waiting[0]
            free = self._free(group.text.numel() if group.stem is None else group.stem.width)
            if free < 1:
                return
            if group.stem is not None:
                self._join(group.stem, free)
                continue
            rest = sum(len(group.samples) for group in self.waiting)
            if self.batch.samples and free < min(self.batch_size * FREE_SHARE, rest):
                return
            self._read()

    def _free(self, length: int) -> int:
        """How many samples with texts of ``length`` may join."""
        running = len(self.batch.samples)
        free = self.batch_size - running
        if self.cache_tokens is not None:
            room = min(self.sampling.max_new_tokens, HEADROOM)
            free = min(free, self.cache_tokens // (max(self.batch.width, length) + room) - running)
        return free if running else max(free, 1)

    def _known(self, text: Tensor) -> Prefix | None:
        """What has been read of ``text``, where the model goes on from it as if it read the whole."""
        assert self.prefixes is not None
        found = self.prefixes.find(text)
        usable = found is not None and found.factors == self.network.factors(text.numel()) and resumes(self.network)
        return found if usable else None

    def _read(self) -> None:
        """Read the texts of the first groups together, as many as may join and as one forward pass should hold."""
        settle(self.network)
        groups = self._next_groups()
        rows: dict[bytes, Group] = {}  # calls that came one by one may ask behind the same text
        for group in groups:
            rows.setdefault(group.content, group)
        texts, prefixes = [row.text for row in rows.values()], [row.prefix for row in rows.values() if row.prefix]
        shown = [row.shown for row in rows.values()]
        stem = self.network.resume(texts, prefixes) if prefixes else self.network.read(texts, shown)
        self._joinable = stem.joinable
        if not self._measured:
            self.cache_tokens, self._measured = affordable_tokens(stem.cache, self.network.device), True
        if self.prefixes is not None and self.prefixes.budget is None:
            self.prefixes.afford((affordable_tokens(stem.cache, self.network.device) or 0) // 2)
        places = {text: row for row, text in enumerate(rows)}
        for group in groups:
            group.stem, group.row = stem, places[group.content]

    def _next_groups(self) -> list[Group]:
        """The first groups that may be read in one forward pass."""
        most = READ_TOKENS.get(self.network.device.type, READ_TOKENS_ELSEWHERE)
        groups: list[Group] = []
        samples = longest = unread = 0
        first = self.waiting[0]
        for group in self.waiting:
            samples += len(group.samples)
            longest, unread = max(longest, group.text.numel()), max(unread, group.unread)
            too_long = self._joinable and (len(groups) + 1) * unread > most
            unlike = group.text.numel() != first.text.numel() and not self.network.pads
            unlike = unlike or not _alike(first, group)
            if groups and (group.stem is not None or too_long or unlike or samples > self._free(longest)):
                break
            groups.append(group)
        return groups

    def _join(self, stem: Prefill, free: int) -> None:
        """Let the samples of the first ``stem`` join, ``free`` at most, with the first token that follows it."""
        rows: list[int] = []
        samples: list[Sample] = []
        while self.waiting and self.waiting[0].stem is stem and len(samples) < free:
            group = self.waiting[0]
            taken = group.samples[: free - len(samples)]
            group.samples = group.samples[len(taken) :]
            samples += taken
            rows += [group.row] * len(taken)
            if not group.samples:
                self.waiting.popleft()
        self._extend(samples, stem.logits[rows])
        if self._joinable and self.prefixes is not None:
            for row, sample in zip(rows, samples, strict=True):
                tokens = sample.length - 1
                if self._stays(sample):
                    self._keep(sample, prefix_of(stem.cache, row, tokens, self.network.factors(tokens)))
        grow = [i for i, sample in enumerate(samples) if sample.alive]
        rest = sum(len(group.samples) for group in self.waiting)
        capacity = min(len(grow) + rest, self._free(stem.width)) + len(self.batch.samples)
        self.batch.join(stem, [rows[i] for i in grow], [samples[i] for i in grow], capacity)
        if not self._joinable:  # the batch has taken the cache
            for group in self.waiting:
                group.stem = None

    def _step(self) -> None:
        """One token more for every sample of the batch."""
        while len(self.batch.samples) > 1 and self._too_wide():
            samples = self.batch.samples
            sample = self.batch.remove(min(range(len(samples)), key=lambda row: len(samples[row].ids)))
            if sample.alive:
                self.waiting.appendleft(Group(sample.text, [sample]))
        logits = self.batch.step()
        self._extend(self.batch.samples, logits)
        for row, sample in enumerate(self.batch.samples):
            if self._stays(sample) and (prefix := self.batch.prefix(row)) is not None:
                self._keep(sample, prefix)
        self.batch.remove_done()

    def _stays(self, sample: Sample) -> bool:
        """Whether what was read of a sample is to be kept: it has ended by itself, made by these weights alone."""
        if self.prefixes is None or sample.images or not sample.finished or set(sample.versions) != {self.version}:
            return False
        return self.prefixes.wants(sample.text[:-1])

    def _keep(self, sample: Sample, prefix: Prefix) -> None:
        assert self.prefixes is not None
        self.prefixes.keep(sample.text[:-1], prefix, self.prefixes.find(sample.prompt))

    def _too_wide(self) -> bool:
        """Whether the next token of every sample would not find room."""
        return self.cache_tokens is not None and len(self.batch.samples) * (self.batch.width + 1) > self.cache_tokens

    def _extend(self, samples: list[Sample], logits: Tensor) -> None:
        """Choose the next token of every sample from ``logits`` ``(n, V)``."""
        tokens, logps = choose(logits, self.sampling, [sample.random.random() for sample in samples])
        for sample, token, logp in zip(samples, tokens.tolist(), logps.tolist(), strict=True):
            if sample.alive:
                sample.append(token, logp, self.stops, self.version)


def _alike(first: Group, group: Group) -> bool:
    """Whether both are read the same way: from the start, or from prefixes that lack about as much."""
    if first.prefix is None or group.prefix is None:
        return first.prefix is group.prefix
    return first.unread == group.unread or (first.prefix.whole and group.prefix.whole)
