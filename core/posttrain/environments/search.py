"""Questions about a small collection of texts: search, then answer with the number of the source text."""

from __future__ import annotations

import random
import re
from typing import Any

from posttrain.environments.environment import Environment, Message
from posttrain.environments.tools import tool

_PLACES = ("Arden", "Brell", "Corvo", "Delm", "Estra", "Fjell", "Gorm", "Hald", "Ister", "Jorn", "Kyle", "Lund")
_RIVERS, _FOODS, _YEARS = ("Ansa", "Belk", "Cird", "Dorn"), ("cheese", "honey", "plums"), ("1102", "1240", "1388")
#: Kind of fact -> the question, the text that answers it, and its possible values.
_FACTS = {
    "river": ("Which river runs through {place}?", "Through {place} runs the river {value}.", _RIVERS),
    "food": ("What is {place} known for?", "Travellers visit {place} for its {value}.", _FOODS),
    "year": ("When was {place} founded?", "{place} was founded in {value}.", _YEARS),
}


class Search(Environment):
    """A tool that finds texts by words; worth 1 for the right answer with the number of its text in brackets."""

    def __init__(self, found: int = 3):
        self.found = found
        self._row: dict[str, Any] = {}

    @classmethod
    def rows(cls, size: int = 500, seed: int = 0) -> list[dict[str, Any]]:
        """Return questions with ``answer`` and ``source``, the number of the text that answers them."""
        dice = random.Random(seed)
        texts = corpus()
        rows = []
        for _ in range(size):
            number = dice.randrange(len(texts))
            place, fact, value, _ = texts[number]
            ask = f"{_FACTS[fact][0].format(place=place)} Answer with the text's number, as in: red [7]"
            rows.append({"prompt": [{"role": "user", "content": ask}], "answer": value, "source": number})
        return rows

    def reset(self, row: dict[str, Any], seed: int) -> None:
        """Store the row."""
        self._row = row

    @tool
    def search(self, words: str) -> str:
        """Find texts that contain the words.

        Args:
            words: Words to look for.
        """
        wanted = set(re.findall(r"\w+", words.lower()))
        scored = [
            (len(wanted & set(re.findall(r"\w+", text.lower()))), -i, text) for i, (*_, text) in enumerate(corpus())
        ]
        best = [one for one in sorted(scored, reverse=True) if one[0] > 0][: self.found]
        return "\n".join(f"[{-number}] {text}" for _, number, text in best) or "(nothing found)"

    def reward(self, message: Message) -> float:
        """Score the episode: half for the right word, half for the right number in brackets."""
        text = str(message.get("content", "")).lower()
        cited = [int(number) for number in re.findall(r"\[(\d{1,6})\]", text)]
        return 0.5 * (str(self._row["answer"]).lower() in text) + 0.5 * (cited == [int(self._row["source"])])


def corpus() -> list[tuple[str, str, str, str]]:
    """Return place, kind of fact, its value, and the text: the same each time."""
    dice = random.Random(7)
    chosen = [(place, fact, dice.choice(_FACTS[fact][2])) for place in _PLACES for fact in _FACTS]
    return [(place, fact, value, _FACTS[fact][1].format(place=place, value=value)) for place, fact, value in chosen]
