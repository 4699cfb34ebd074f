"""Tokenisation of single prompts and answers during a run: a teacher's prompt, an answer from the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posttrain.contract.messages import is_messages, message_text
from posttrain.contract.views import Sequence
from posttrain.data.tokens.images import COLUMNS as IMAGES
from posttrain.data.tokens.images import with_pictures
from posttrain.data.tokens.sequence_specs import Content, SequenceSpec, as_told, with_system
from posttrain.data.tokens.templates import Templates
from posttrain.data.tokens.tokenise import Encoder, Tokens
from posttrain.errors import DataError
from posttrain.network.image_reader import reader_of
from posttrain.settings import DataSettings


def encode_prompt(
    prompt: Content, tokenizer: Any, settings: DataSettings, stop_ids: set[int], columns: dict[str, Any]
) -> tuple[Tensor, str]:
    """Encode a prompt like the data's own, before an answer; return its tokens ``(p,)`` and text.

    ``columns`` are those of its row; the chat template gets its tools and its own variables.
    """
    sequence, text = encode_shown(prompt, tokenizer, settings, stop_ids, columns)
    return sequence.ids, text


def encode_shown(
    prompt: Content, tokenizer: Any, settings: DataSettings, stop_ids: set[int], columns: dict[str, Any]
) -> tuple[Sequence, str]:
    """Encode a prompt as an untrained sequence with the row's images; return it and its text."""
    draft = _draft(with_system(prompt, settings.system_prompt), None, columns, tokenizer, settings)
    tokens, text = _encode(draft, tokenizer, settings, stop_ids)
    ids = torch.from_numpy(tokens.ids).long()
    return Sequence(ids, torch.zeros(len(ids), dtype=torch.bool), images=tokens.images), text


def encode_row(
    prompt: Content,
    completion: str,
    tokenizer: Any,
    settings: DataSettings,
    stop_ids: set[int],
    columns: dict[str, Any],
) -> Sequence:
    """Encode a prompt with a completion, as a row of such data is encoded, with the images of its columns."""
    answer = [{"role": "assistant", "content": completion}] if is_messages(prompt) else completion
    draft = _draft(prompt, answer, columns, tokenizer, settings)
    tokens, _ = _encode(draft, tokenizer, settings, stop_ids)
    return Sequence(torch.from_numpy(tokens.ids).long(), torch.from_numpy(tokens.trained), images=tokens.images)


def encode_answer(
    columns: dict[str, Any], tokenizer: Any, settings: DataSettings, stop_ids: set[int]
) -> tuple[Tensor, Tensor, str]:
    """Return tokens ``(p,)`` of a row's prompt, ``(t,)`` of its own answer (at most max-new-tokens), and its text."""
    prompt, completion = with_system(columns["prompt"], settings.system_prompt), columns["completion"]
    if is_messages(prompt) and isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    draft = _draft(prompt, completion, columns, tokenizer, settings)
    tokens, _ = _encode(draft, tokenizer, settings, stop_ids)
    learnt = tokens.trained.nonzero()[0]
    if not len(learnt):
        raise DataError(f"The answer {str(completion)[:60]!r} has no tokens. Expected text to learn from.")
    ids = torch.from_numpy(tokens.ids).long()
    first = int(learnt[0])
    text = completion if isinstance(completion, str) else "".join(message_text(one) for one in completion)
    return ids[:first], ids[first : int(learnt[-1]) + 1][: settings.max_new_tokens], text


def _draft(
    prompt: Content, completion: Content | None, columns: dict[str, Any], tokenizer: Any, settings: DataSettings
) -> SequenceSpec:
    row = {"prompt": prompt, "completion": completion, "chat_template_kwargs": columns.get("chat_template_kwargs")}
    row |= {name: columns[name] for name in IMAGES if name in columns}
    row, sources = with_pictures(row, "this row", settings) if reader_of(tokenizer) is not None else (row, [])
    return as_told(SequenceSpec(row["prompt"], row["completion"], columns.get("tools")), row, sources)


def _encode(draft: SequenceSpec, tokenizer: Any, settings: DataSettings, stop_ids: set[int]) -> tuple[Tokens, str]:
    layout = Templates(tokenizer, settings).layout(draft, "this row")
    (tokens,) = Encoder(tokenizer, stop_ids).encode([layout])
    return tokens, layout.text
