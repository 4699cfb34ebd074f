"""Metrics of the texts of a batch of completions, independent of their rewards."""

from __future__ import annotations

from collections import Counter

from posttrain.contract.rollout import Rollout

#: Tokens of the n-grams whose repeats are counted, and of the shortest completion that is checked.
GRAM, LONG = 4, 16
#: Number of completions checked for repeats.
LOOKED_AT = 64


def text_metrics(items: list[Rollout]) -> dict[str, float]:
    """Return the share of empty completions, of the commonest text, and of repeated n-grams in long ones.

    The commonest text counts where there are several prompts. ``repetition`` is missing where no completion is long.
    """
    own = [item for item in items if item.source == "policy"]
    if not own:
        return {}
    texts = Counter(item.completion.text.strip() for item in own)
    found = {"empty_share": texts[""] / len(own)}
    if len({item.group for item in own}) > 1:
        found["common_share"] = max(texts.values()) / len(own)
    repeats = [share for item in own[:LOOKED_AT] if (share := repetition(item.completion.ids.tolist())) is not None]
    if repeats:
        found["repetition"] = sum(repeats) / len(repeats)
    return found


def repetition(ids: list[int]) -> float | None:
    """Return the share of a completion's 4-grams that occurred in it before; None for a short one."""
    if len(ids) < LONG:
        return None
    grams = list(zip(*(ids[start:] for start in range(GRAM)), strict=False))
    return 1 - len(set(grams)) / len(grams)
