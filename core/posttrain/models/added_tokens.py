"""Tokens that a run adds to a model's vocabulary: to its tokenizer, and as rows of embedding and projection."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from posttrain.errors import SettingsError
from posttrain.models.vocabulary import end_names, end_weights

#: Attribute of a tokenizer: ids for which its model has no rows of its own.
NEW = "posttrain_new_tokens"


def named_tokens(named: list[str] | None) -> list[str]:
    """Return the tokens of the option: given by name, or one per line in a file."""
    found: list[str] = []
    for item in named or ():
        path = Path(item).expanduser()
        try:
            found += path.read_text(encoding="utf-8").splitlines() if path.is_file() else [item]
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"add-tokens: '{item}' cannot be read: {error}.") from None
    return [token for token in dict.fromkeys(found) if token.strip()]


def with_tokens(tokenizer: Any, named: list[str] | None) -> Any:
    """Return a tokenizer with the tokens added as ordinary ones; the same object if all are known."""
    tokens = named_tokens(named)
    known = tokenizer.get_vocab()
    if all(token in known for token in tokens):
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    new = [token for token in tokens if token not in known]
    tokenizer.add_tokens(new)
    setattr(tokenizer, NEW, tokenizer.convert_tokens_to_ids(new))
    return tokenizer


@torch.no_grad()
def grow_to_tokens(inner: Any, tokenizer: Any, named: list[str] | None) -> dict[str, list[int]]:
    """Add rows for the added tokens to embedding and projection; return the ids of all named ones by matrix name.

    A new row is the mean of the earlier rows. The row of a token that the tokenizer already had is unchanged.
    """
    tokens = named_tokens(named)
    if not tokens:
        return {}
    ids = sorted(tokenizer.convert_tokens_to_ids(token) for token in tokens)
    before = end_weights(inner)[0].shape[0]
    if len(tokenizer) > before:
        inner.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    new = [i for i in getattr(tokenizer, NEW, ids) if i in set(ids)]
    for weight in end_weights(inner):
        weight[new] = weight[: min(new, default=0)].float().mean(0).to(weight.dtype)
    names = end_names(inner)
    tied = len(end_weights(inner)) == 2 and end_weights(inner)[0] is end_weights(inner)[1]
    return dict.fromkeys(names[:1] if tied else names, ids)
