"""Guesses of the tokens that follow, from what followed the same tokens before: speculation without a second model.

Source: Saxena 2023, "Prompt Lookup Decoding". Here the texts of all completions of a prompt are looked up.
"""

from __future__ import annotations

#: Numbers of last tokens that are looked up, in this order.
SIZES = (4, 3, 2)


class Index:
    """Where runs of tokens stand in a prompt and in its completions; the latest place counts."""

    def __init__(self, prompt: list[int]):
        """Index the tokens of the prompt."""
        self.prompt = prompt
        self.places: dict[tuple[int, ...], tuple[list[int], int]] = {}
        """Text and place of the token that followed a run."""
        for place in range(len(prompt)):
            self.enter(prompt, place)

    def enter(self, text: list[int], place: int) -> None:
        """Enter the runs that the token of ``text`` at ``place`` follows."""
        for size in SIZES:
            if place >= size:
                self.places[tuple(text[place - size : place])] = text, place


class Lookup:
    """The text of one completion, prompt included, and the index that it shares with the others of its prompt."""

    def __init__(self, index: Index):
        """Start with the prompt."""
        self.index = index
        self.text = list(index.prompt)

    def add(self, token: int) -> None:
        """Append a token and enter what it follows."""
        self.text.append(token)
        self.index.enter(self.text, len(self.text) - 1)

    def guess(self, most: int) -> list[int]:
        """Return up to ``most`` tokens that followed the last ones where they stood before."""
        for size in SIZES:
            if len(self.text) < size:
                continue
            text, place = self.index.places.get(tuple(self.text[-size:]), ([], 0))
            text = self.text if text is self.index.prompt else text  # which goes on behind the prompt
            found = text[place : place + most]
            while found and text is self.text and len(found) < most:  # the text repeats itself up to its end
                found.append(found[len(found) - (len(text) - place)])
            if found:
                return found
        return []
