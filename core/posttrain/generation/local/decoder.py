"""Continuous batching: which text is prefilled when, and which samples decode together."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from posttrain.contract.generation import Sampling
from posttrain.contract.views import Sequence
from posttrain.generation.local.batch import Batch
from posttrain.generation.local.cache import affordable_tokens
from posttrain.generation.local.prefill import Network, Prefill
from posttrain.generation.local.prefixes import Prefix, Prefixes, prefix_of
from posttrain.generation.local.sample import Sample, Stops
from posttrain.generation.local.speculation import Speculation, Speculator, extend
from posttrain.generation.local.ways import resumes, settle

#: Prompt tokens, padding included, that one forward pass reads: enough to keep the machine busy, few enough that only
#: prompts of about the same length share a pass.
READ_TOKENS = {"cpu": 512}
READ_TOKENS_ELSEWHERE = 8192

#: Share of the batch that must be free before further prompts are read into it.
FREE_SHARE = 1 / 8

#: Columns of room that a sample must have when it joins, so that it is not preempted at once.
HEADROOM = 64

#: Columns that an unlimited cache has to spare: more than any guess.
SPARE = 2**20


@dataclass
class Group:
    """Waiting samples that have the same text so far."""

    text: Tensor
    """``(n,)``"""
    samples: list[Sample]
    stem: Prefill | None = None
    """Prefill of the text, where it was read already."""
    row: int = 0
    """Row of the text in ``stem``."""
    draft: Prefill | None = None
    """The same texts as in ``stem``, read by a draft model."""
    prefix: Prefix | None = None
    """Part of the text that an earlier call has read."""

    @property
    def shown(self) -> Sequence:
        """The text with its images."""
        return self.samples[0].shown_as(self.text)

    @property
    def content(self) -> bytes:
        """Key that equal texts with equal images share."""
        return self.shown.content.numpy().tobytes()

    @property
    def unread(self) -> int:
        """Tokens that the model has to read before the first sample grows."""
        return self.text.numel() - (0 if self.prefix is None else self.prefix.tokens)


class Decoder:
    """Completes groups of samples, at most ``batch_size`` at a time.

    ``cache_tokens`` bounds the columns of the batch's cache over all rows, padding included; None: what a quarter of
    the memory holds. When the cache is full, the sample with the fewest tokens is preempted and read again later. The
    last sample is never preempted.
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
        speculation: Speculation | None = None,
    ):
        """Start without samples. ``prefixes`` has the texts read by earlier calls, and gets those of these samples."""
        self.speculator = None if speculation is None else Speculator(speculation, network, sampling)
        self.prefixes = prefixes
        self.version = version
        """Version of the weights that make the next token."""
        self.network = network
        self.sampling = sampling
        self.stops = stops
        self.batch_size = batch_size
        self.cache_tokens = cache_tokens
        self.batch = Batch(network)
        self.waiting: deque[Group] = deque()
        self._measured = cache_tokens is not None
        self._joinable = True  # until the first cache shows otherwise

    def run(self, groups: list[Group]) -> None:
        """Complete all samples of ``groups``; groups of similar length should be adjacent."""
        self.add(groups)
        while self.advance():
            pass

    def add(self, groups: Iterable[Group]) -> None:
        """Queue groups, each with the cached prefix of its text."""
        for group in groups:
            if self.prefixes is not None and self.network.resumable:
                group.prefix = self._known(group)
            self.waiting.append(group)

    def renew(self, version: int) -> None:
        """Continue with other weights: running samples keep what was read for them, waiting texts are read anew."""
        self.version = version
        for group in self.waiting:
            group.prefix = None

    def advance(self) -> bool:
        """Admit samples and make one token of each in the batch; False where nothing is left to do."""
        self._admit()
        if self.batch.samples:
            self._step()
        return bool(self.waiting or self.batch.samples)

    def _admit(self) -> None:
        """Admit waiting samples while there is room for them."""
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
        """Return the number of samples with texts of ``length`` that may join."""
        running = len(self.batch.samples)
        free = self.batch_size - running
        if self.cache_tokens is not None:
            room = min(self.sampling.max_new_tokens, HEADROOM)
            free = min(free, self.cache_tokens // (max(self.batch.width, length) + room) - running)
        return free if running else max(free, 1)

    def _known(self, group: Group) -> Prefix | None:
        """Return the cached prefix of a text, where the model continues from it as if it read the whole text."""
        assert self.prefixes is not None
        found = self.prefixes.find(group.shown.content)
        if found is None or found.factors != self.network.factors(group.text.numel()):
            return None
        return found if resumes(self.network, bool(group.samples[0].images)) else None

    def _read(self) -> None:
        """Read the texts of the first groups together: as many as may join and fit one forward pass."""
        settle(self.network)
        groups = self._next_groups()
        rows: dict[bytes, Group] = {}  # separate calls may share a text
        for group in groups:
            rows.setdefault(group.content, group)
        texts, prefixes = [row.text for row in rows.values()], [row.prefix for row in rows.values() if row.prefix]
        shown = [row.shown for row in rows.values()]
        stem = self.network.resume(texts, prefixes, shown) if prefixes else self.network.read(texts, shown)
        self._joinable = stem.joinable
        if not self._measured:
            self.cache_tokens, self._measured = affordable_tokens(stem.cache, self.network.device), True
        if self.prefixes is not None and self.prefixes.budget is None:
            self.prefixes.afford((affordable_tokens(stem.cache, self.network.device) or 0) // 2)
        places = {text: row for row, text in enumerate(rows)}
        draft = None
        if self.speculator is not None:
            self.speculator.check(stem.joinable)
            draft = self.speculator.read(texts)
        for group in groups:
            group.stem, group.row, group.draft = stem, places[group.content], draft

    def _next_groups(self) -> list[Group]:
        """Return the first groups that may be read in one forward pass."""
        most = READ_TOKENS.get(self.network.device.type, READ_TOKENS_ELSEWHERE)
        groups: list[Group] = []
        samples = longest = unread = 0
        first = self.waiting[0]
        for group in self.waiting:
            samples += len(group.samples)
            longest = max(longest, group.text.numel())
            unread = max(unread, group.unread if self.speculator is None or self.speculator.batch is None else longest)
            too_long = self._joinable and (len(groups) + 1) * unread > most
            unlike = group.text.numel() != first.text.numel() and not self.network.pads
            unlike = unlike or not _alike(first, group)
            if groups and (group.stem is not None or too_long or unlike or samples > self._free(longest)):
                break
            groups.append(group)
        return groups

    def _join(self, stem: Prefill, free: int) -> None:
        """Add up to ``free`` samples of the first groups of ``stem`` to the batch, each with its first token."""
        rows: list[int] = []
        samples: list[Sample] = []
        draft = self.waiting[0].draft
        while self.waiting and self.waiting[0].stem is stem and len(samples) < free:
            group = self.waiting[0]
            taken = group.samples[: free - len(samples)]
            group.samples = group.samples[len(taken) :]
            samples += taken
            rows += [group.row] * len(taken)
            if not group.samples:
                self.waiting.popleft()
        for row, sample in zip(rows, samples, strict=True):
            if stem.experts is not None:
                sample.note(stem.experts[row])
        guess = None if self.speculator is None else self.speculator.first(draft, rows, samples)
        extend(samples, stem.logits[rows][:, None], self.sampling, guess, self.stops, self.version)
        if self._joinable and self.prefixes is not None:
            for row, sample in zip(rows, samples, strict=True):
                tokens = sample.length - 1
                if self._stays(sample):
                    self._keep(sample, prefix_of(stem.cache, row, tokens, self.network.factors(tokens)))
        grow = [i for i, sample in enumerate(samples) if sample.alive]
        rest = sum(len(group.samples) for group in self.waiting)
        capacity = min(len(grow) + rest, self._free(stem.width)) + len(self.batch.samples)
        for batch, read in self._batches(stem, draft):
            batch.join(read, [rows[i] for i in grow], [samples[i] for i in grow], capacity)
        if not self._joinable:  # the batch has taken over the cache
            for group in self.waiting:
                group.stem = None

    def _batches(self, stem: Prefill, draft: Prefill | None) -> list[tuple[Batch, Prefill]]:
        """Return the batch of the model and that of a draft model, each with the texts that join it."""
        if self.speculator is None or self.speculator.batch is None or draft is None:
            return [(self.batch, stem)]
        return [(self.batch, stem), (self.speculator.batch, draft)]

    def _step(self) -> None:
        """Add a token to every sample of the batch, and further ones where they were guessed."""
        while len(self.batch.samples) > 1 and self._too_wide():
            samples = self.batch.samples
            row = min(range(len(samples)), key=lambda row: len(samples[row].ids))
            sample = self.batch.remove(row)
            if self.speculator is not None and self.speculator.batch is not None:
                self.speculator.batch.remove(row)
            if sample.alive:
                self.waiting.appendleft(Group(sample.text, [sample]))
        guess = None if self.speculator is None else self.speculator.guess(self.batch.samples, self._spare())
        logits = self.batch.step(None if guess is None else guess.following)
        counts = extend(self.batch.samples, logits, self.sampling, guess, self.stops, self.version)
        self.batch.keep(counts)
        for row, sample in enumerate(self.batch.samples):
            if self._stays(sample) and (prefix := self.batch.prefix(row)) is not None:
                self._keep(sample, prefix)
        self.batch.remove_done()
        if self.speculator is not None and guess is not None:
            self.speculator.keep(counts, guess)

    def _stays(self, sample: Sample) -> bool:
        """Whether a sample's keys and values are kept: it ended by itself, and these weights alone made it."""
        if self.prefixes is None or not sample.finished or set(sample.versions) != {self.version}:
            return False
        return self.prefixes.wants(sample.shown.content[:-1])

    def _keep(self, sample: Sample, prefix: Prefix) -> None:
        assert self.prefixes is not None
        experts = sample.experts
        prefix = prefix if experts is None else replace(prefix, experts=experts[: prefix.tokens])
        content = sample.shown.content
        self.prefixes.keep(content[:-1], prefix, self.prefixes.find(content[: sample.prompt.numel()]))

    def _too_wide(self) -> bool:
        """Whether the next token of every sample would exceed the cache's limit."""
        if self._spare() < 0:
            self.batch.align()
        return self._spare() < 0

    def _spare(self) -> int:
        """Return the columns that the cache's limit leaves when the next token of every sample is read."""
        if self.cache_tokens is None:
            return SPARE
        return self.cache_tokens // len(self.batch.samples) - (self.batch.width + 1)


def _alike(first: Group, group: Group) -> bool:
    """Whether both are read the same way: from the start, or from prefixes that lack as many tokens or are whole.

    Beside a text with more unread tokens the end of a prefix is read again, which must not begin within an image.
    """
    if first.prefix is None or group.prefix is None:
        return first.prefix is group.prefix
    if first.unread == group.unread:
        return True
    shown = first.samples[0].images or group.samples[0].images
    return not shown and first.prefix.whole and group.prefix.whole
