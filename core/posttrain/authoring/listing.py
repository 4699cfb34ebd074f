"""The lists of all methods: ``docs/methods/README.md`` by family, data, need and tier, and a page to search them."""

from __future__ import annotations

import json
from collections.abc import Callable
from html import escape
from typing import Any

from posttrain.authoring.render import MARK
from posttrain.catalogue.cards import NEEDS, SCHEMAS, TIERS, Card

#: Family -> what its methods learn from. Other families are listed under their own name.
FAMILIES = {
    "supervised": "Imitation: texts, or prompts with the answers that are wanted",
    "imitation": "Imitation while generating",
    "pairwise": "Preferences: of two answers the better one",
    "unpaired": "Judgements: single answers marked good or bad",
    "listwise": "Rankings: several answers to a prompt, best first",
    "reward-model": "Reward models: learning to judge",
    "unlearning": "Unlearning: what to forget beside what to keep",
    "offline-rl": "Scored answers that are there already",
    "policy-gradient": "Rewards: policy gradients on answers that the model writes while it trains",
    "actor-critic": "Rewards: policy gradients with a learnt value",
    "regression": "Rewards: regression on answers that the model writes while it trains",
    "online-preference": "Preferences between answers that the model writes while it trains",
    "distillation": "Teachers: distillation of another model, or of itself",
}


def index(cards: list[Card]) -> str:
    """Render ``docs/methods/README.md``: all methods of the repository, each once by family, elsewhere by name."""
    families = {family: [card for card in cards if _family(card) == family] for family in _families(cards)}
    tables = [
        f"### {FAMILIES.get(family, family)}\n\n{_table(members)}" for family, members in families.items() if members
    ]
    blocks = [
        f"<!-- {MARK} -->",
        "# Methods",
        f"{len(cards)} methods. Who does not know the names begins with [which method](../which-method.md); "
        "[search.html](search.html), opened in a browser, filters this list by word, data, need and tier.",
        "## By family",
        *tables,
        "## By data\n\n" + _names(cards, SCHEMAS, lambda card: card.schemas),
        "## By need\n\n" + _names(cards, (*NEEDS, "nothing"), _needs),
        "## By tier\n\n" + _names(cards, TIERS, lambda card: (card.tier,)),
    ]
    return "\n\n".join(blocks) + "\n"


def _family(card: Card) -> str:
    return card.family or "other"


def _families(cards: list[Card]) -> list[str]:
    found = {_family(card) for card in cards}
    return [*(family for family in FAMILIES if family in found), *sorted(found - set(FAMILIES))]


def _table(cards: list[Card]) -> str:
    rows = [
        f"| [{card.name}]({card.name}.md) | {card.tier} | {', '.join(card.schemas)} | {', '.join(card.needs) or '-'} "
        f"| {_cell(card.summary)} |"
        for card in cards
    ]
    return "| method | tier | data | needs | summary |\n|---|---|---|---|---|\n" + "\n".join(rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _needs(card: Card) -> tuple[str, ...]:
    return tuple(need.partition(" ")[0] for need in card.needs) or ("nothing",)


def _names(cards: list[Card], values: tuple[str, ...], of: Callable[[Card], tuple[str, ...]]) -> str:
    lines = []
    for value in values:
        members = [f"[{card.name}]({card.name}.md)" for card in cards if value in of(card)]
        if members:
            lines.append(f"- **{value}** ({len(members)}): {', '.join(members)}")
    return "\n".join(lines)


def search_page(cards: list[Card]) -> str:
    """Render ``docs/methods/search.html``: one file that needs no server and nothing from the network."""
    rows: list[dict[str, Any]] = [
        {
            "name": card.name,
            "tier": card.tier,
            "family": _family(card),
            "data": list(card.schemas),
            "needs": list(_needs(card)),
            "summary": card.summary,
            "paper": card.paper,
        }
        for card in cards
    ]
    choices = "\n".join(
        f'<select id="{key}"><option value="">any {key}</option>'
        + "".join(f"<option>{escape(value)}</option>" for value in values)
        + "</select>"
        for key, values in (
            ("family", _families(cards)),
            ("data", [one for one in SCHEMAS if any(one in card.schemas for card in cards)]),
            ("needs", [one for one in (*NEEDS, "nothing") if any(one in _needs(card) for card in cards)]),
            ("tier", [one for one in TIERS if any(one == card.tier for card in cards)]),
        )
    )
    data = json.dumps(rows, ensure_ascii=False).replace("</", "<\\/")
    return _PAGE.replace("@MARK@", MARK).replace("@CHOICES@", choices).replace("@ROWS@", data)


_PAGE = """<!doctype html>
<!-- @MARK@ -->
<html lang="en"><meta charset="utf-8"><title>Methods of posttrain</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em }
input, select { font: inherit; padding: .3em; margin: 0 .3em .5em 0 }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; vertical-align: top; padding: .35em .6em .35em 0; border-bottom: 1px solid #ddd }
</style>
<h1>Methods</h1>
<input id="word" type="search" placeholder="words of the name, the summary or the paper" size="40" autofocus>
@CHOICES@
<p id="count"></p>
<table><thead><tr><th>method<th>tier<th>data<th>needs<th>summary</thead><tbody id="rows"></tbody></table>
<script type="application/json" id="methods">@ROWS@</script>
<script>
const methods = JSON.parse(document.getElementById("methods").textContent);
const keys = ["family", "data", "needs", "tier"];
const value = id => document.getElementById(id).value;
function cell(row, text, link) {
  const place = row.insertCell();
  if (!link) { place.textContent = text; return; }
  const anchor = document.createElement("a");
  anchor.href = link; anchor.textContent = text; place.append(anchor);
}
function show() {
  const words = value("word").toLowerCase().split(/\\s+/).filter(Boolean);
  const found = methods.filter(one =>
    words.every(word => JSON.stringify(Object.values(one)).toLowerCase().includes(word)) &&
    keys.every(key => !value(key) || [].concat(one[key]).includes(value(key))));
  const body = document.getElementById("rows");
  body.replaceChildren();
  for (const one of found) {
    const row = body.insertRow();
    cell(row, one.name, one.name + ".md");
    for (const text of [one.tier, one.data.join(", "), one.needs.join(", "), one.summary]) cell(row, text);
  }
  document.getElementById("count").textContent = found.length + " of " + methods.length + " methods";
}
for (const id of ["word", ...keys]) document.getElementById(id).addEventListener("input", show);
show();
</script></html>
"""
