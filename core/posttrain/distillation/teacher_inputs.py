"""Teacher logits for the head: for the same tokens, after whatever prompt the teacher has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from posttrain.contract.views import Sequence
from posttrain.data.tokens.encode_one import encode_shown
from posttrain.distillation.align import Alignment, align, shared_vocabulary
from posttrain.distillation.token_bytes import token_bytes
from posttrain.network.chunked_head import TokenQuery
from posttrain.settings import DataSettings


@dataclass(frozen=True)
class AlignedChunk:
    """The ``alignment`` of ``posttrain_token_statistics``: n tokens of the policy and m of the teacher, in S spans."""

    student_spans: Tensor
    """Span of each of the n tokens, numbered from 0 within the chunk."""
    teacher_spans: Tensor
    """Span of each of the teacher's m tokens."""
    teacher_labels: Tensor
    """The teacher's m tokens themselves."""
    text: Tensor
    """``(S,)`` bool: the span has text on both sides; False for ends of sequences and for spans of one side alone."""
    matched: tuple[Tensor, Tensor]
    """Ids ``(k,)`` of equivalent tokens, the policy's and the teacher's."""


def has_teacher_target(sequences: list[Sequence]) -> list[Sequence]:
    """Return the sequences as the teacher sees them."""
    return [sequence.teacher or sequence for sequence in sequences]


def attach_teacher_logits(request: TokenQuery, teacher: Any, sequences: list[Sequence]) -> None:
    """Put the teacher's logits for the trained tokens of ``sequences`` into ``request.others``.

    With another tokeniser chunks are cut between spans, and the alignment of each is put there too.
    """
    if teacher.tokenizer is None:
        request.others["teacher_logits"] = teacher.logits(has_teacher_target(sequences), request.temperature)
        return
    logits = teacher.logits([sequence.teacher or _NOTHING for sequence in sequences], request.temperature)
    chunks = dict(_aligned_chunks(sequences, teacher.matched, request.chunk))
    request.cuts = [slice(*key) for key in chunks]
    request.others["teacher_logits"] = lambda at: logits(chunks[at.start, at.stop][0])
    request.others["alignment"] = lambda at: chunks[at.start, at.stop][1]


def translate(
    prompt: Any,
    completion: Tensor,
    tokenizer: Any,
    stop_ids: set[int],
    teacher: Any,
    settings: DataSettings,
    columns: dict[str, Any],
) -> tuple[Sequence, Any]:
    """Build a sequence for a teacher's own tokeniser, and its alignment with ``completion`` ``(t,)``.

    The teacher's own chat template writes the prompt; a finished answer ends in the teacher's end token.
    """
    own = replace(settings, chat_template=None)
    asked, _ = encode_shown(prompt, teacher.tokenizer, own, {teacher.tokenizer.eos_token_id}, columns)
    text = b"".join(token_bytes(tokenizer, completion.tolist())).decode("utf-8", errors="replace")
    answer = teacher.tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(completion) and int(completion[-1]) in stop_ids and teacher.tokenizer.eos_token_id is not None:
        answer = [*answer, teacher.tokenizer.eos_token_id]
    whole = torch.cat([asked.ids, torch.tensor(answer, dtype=torch.int64)])
    found = align(tokenizer, completion.tolist(), teacher.tokenizer, answer)
    return Sequence(whole, torch.arange(len(whole)) >= len(asked), images=asked.images), found


def matching(tokenizer: Any, teacher_tokenizer: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids ``(k,)`` of the tokens that both vocabularies have, on ``device``."""
    ours, theirs = shared_vocabulary(tokenizer, teacher_tokenizer)
    return ours.to(device), theirs.to(device)


#: Teacher's input for a sequence without trained tokens.
_NOTHING = Sequence(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.bool))


def _alignment(sequence: Sequence) -> Alignment:
    """Return a sequence's alignment; a sequence without one gets a single span on the policy's side."""
    if sequence.alignment is not None:
        return sequence.alignment
    zeros = torch.zeros(sequence.count, dtype=torch.int64)
    return Alignment(zeros, zeros[:0], int(sequence.count > 0), torch.zeros(int(sequence.count > 0), dtype=torch.bool))


def _aligned_chunks(
    sequences: list[Sequence], matched: tuple[Tensor, Tensor], size: int
) -> Iterator[tuple[tuple[int, int], tuple[slice, AlignedChunk]]]:
    """Yield chunks of about ``size`` tokens cut between spans: (start, stop), the teacher's part, the alignment."""
    device = matched[0].device
    parts = [(s, _alignment(s)) for s in sequences if s.count]
    numbers: list[list[Tensor]] = [[], []]
    spans = 0
    for _, found in parts:
        numbers[0].append(found.student_spans + spans)
        numbers[1].append(found.teacher_spans + spans)
        spans += found.spans
    if not parts:
        return
    ours, theirs = torch.cat(numbers[0]), torch.cat(numbers[1])  # (n,), (m,)
    text = torch.cat([found.text for _, found in parts])  # (S,)
    seen = [s.teacher or _NOTHING for s, _ in parts]
    labels = torch.cat([s.ids[s.trained] for s in seen])  # (m,)
    first = 0
    while first < spans:
        # The spans of the next `size` tokens, but at least one: both sides are in order.
        start = int(torch.searchsorted(ours, first))
        last = int(ours[min(start + size, len(ours)) - 1]) if start < len(ours) else spans - 1
        end = spans if last >= spans - 1 or start + size >= len(ours) else max(last, first + 1)
        stop = int(torch.searchsorted(ours, end))
        begin, until = int(torch.searchsorted(theirs, first)), int(torch.searchsorted(theirs, end))
        chunk = AlignedChunk(
            student_spans=(ours[start:stop] - first).to(device),
            teacher_spans=(theirs[begin:until] - first).to(device),
            teacher_labels=labels[begin:until].to(device),
            text=text[first:end].to(device),
            matched=matched,
        )
        if stop > start:
            yield (start, stop), (slice(begin, until), chunk)
        first = end
