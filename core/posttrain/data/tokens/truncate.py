"""Truncation of long rows: the prompt from its start, then the completion from its end."""

from __future__ import annotations

import dataclasses

import numpy as np

from posttrain.data.tokens.tokenise import Tokens


class CutsImage(Exception):
    """A row that cannot be cut enough without cutting an image."""


def kept(prompt: int, completion: int, limit: int) -> tuple[int, int]:
    """Return the tokens kept of a prompt's end and a completion's start, together at most ``limit``.

    The prompt is cut first, but not below a quarter of ``limit``: its end is the question that the completion answers.
    ``limit`` is at least 2, and both sides keep at least one token.
    """
    keep = min(prompt, max(limit - completion, limit // 4, 1))
    return keep, min(completion, limit - keep)


def cut_example(rows: list[Tokens], limit: int) -> list[Tokens]:
    """Cut all sequences of one example to ``limit`` tokens; completions of one prompt keep the same part of it.

    Raises CutsImage where an image would not stay whole.
    """
    longest_prompt = max(tokens.prompt for tokens in rows)
    longest_completion = max(len(tokens.ids) - tokens.prompt for tokens in rows)
    keep, _ = kept(longest_prompt, longest_completion, limit)
    return [_cut(tokens, min(tokens.prompt, keep), limit) for tokens in rows]


def _cut(tokens: Tokens, keep: int, limit: int) -> Tokens:
    length = len(tokens.ids)
    if length <= limit and keep == tokens.prompt:
        return tokens
    head = [0] if tokens.begins and 0 < keep < tokens.prompt else []
    tail = range(tokens.prompt - keep + len(head), tokens.prompt)
    completion = range(tokens.prompt, min(length, tokens.prompt + limit - keep))
    index = np.array([*head, *tail, *completion], dtype=np.int64)
    if tokens.images and (tokens.ids == (token := tokens.images[0].token)).sum() > (tokens.ids[index] == token).sum():
        raise CutsImage
    trained = tokens.trained[index].copy()
    trained[:1] = False
    places = {old: new for new, old in enumerate(index.tolist())}
    marked = [(places[mark], label) for mark, label in zip(tokens.marks, tokens.labels, strict=True) if mark in places]
    return dataclasses.replace(
        tokens,
        ids=tokens.ids[index],
        trained=trained,
        prompt=keep,
        marks=[mark for mark, _ in marked],
        labels=[label for _, label in marked],
    )
