"""Expansion of a golden entry's inputs that are stated in a shorter form than a method sees them.

- A card may say how one number an answer is spread over its tokens: ``seqkl_chosen = "chosen_kl:sum"`` is a token
  statistic whose sum is the number, ``":mean"`` one whose mean is. Without a role it is that of every role.
- ``NAME_positions`` are the positions of the tokens for which the mask NAME is true.
- For a method of ranked data the lists are the answers to one prompt, sorted by their ``scores``.
"""

from __future__ import annotations

from typing import Any

from posttrain.catalogue.cards import Card

#: Marks inputs whose rows are the answers to one prompt.
RANKING = "ranking"


def lay_out(raw: dict[str, Any], card: Card) -> dict[str, Any]:
    """Return the inputs by name, expanded; those that need no expansion are unchanged."""
    lengths = {name: _lengths(raw, name) for name in ("chosen", "rejected", "completion")}
    found: dict[str, Any] = {}
    for name, value in raw.items():
        plain, _, how = name.partition(":")
        if how:
            for role in [role for role in lengths if plain.startswith(role + "_")] or [
                r for r in lengths if lengths[r]
            ]:
                own = plain.removeprefix(role + "_")
                found[f"{role}_{own}"] = [
                    [number / (length if how == "sum" else 1)] * length
                    for number, length in zip(_listed(value), lengths[role], strict=True)
                ]
        elif name.endswith("_positions"):
            mask = name.removesuffix("_positions")
            (length,) = lengths[mask.partition("_")[0]]
            found[mask] = [[place in value for place in range(length)]]
        else:
            found[name] = value
    return _ranked(found) if card.schemas[0] == "ranked" else found


def _lengths(raw: dict[str, Any], role: str) -> list[int]:
    """Return the tokens of each answer of a role; empty where the inputs do not say."""
    given = raw.get(f"{role}_len", raw.get(f"policy_{role}_tok", []))
    if isinstance(given, list) and given and not isinstance(given[0], int):
        rows = given if isinstance(given[0], list) else [given]
        return [len(row) for row in rows]
    return _listed(given)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _ranked(raw: dict[str, Any]) -> dict[str, Any]:
    scores = raw.get("scores")
    if scores is not None:
        order = sorted(range(len(scores)), key=lambda place: -scores[place])
        raw = {
            name: [value[place] for place in order] if isinstance(value, list) and len(value) == len(order) else value
            for name, value in raw.items()
        }
    return {**raw, RANKING: True}
