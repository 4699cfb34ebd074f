"""Other models as partners in a conversation: a simulated user, an opponent, or several who speak in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from posttrain.environments.environment import Environment, Message, Observation

#: Returns a model's answer to messages, with a seed.
Ask = Callable[[list[Message], int], str]

INSTRUCTIONS = (
    "You play the person who talks to an assistant. Say only what that person would say, one message at a time. "
    "When you have got what you wanted, say {done}; when there is no hope of it, say {failed}."
)


class ChatPartner(Environment):
    """One conversation. The policy is the assistant; a partner sees the roles the other way round.

    A row's column ``partner`` gives the partner its role and aim, beside ``instructions``; a list of texts makes
    several partners, who answer one after the other, and each sees what the others said. The conversation ends when a
    partner says ``done``, for a reward of 1, or ``failed``, for 0.
    """

    def __init__(self, ask: Ask, instructions: str, done: str, failed: str, begins: bool):
        """Store the options. ``begins``: the partners speak before the policy; else the row's prompt comes first."""
        self._ask, self._done, self._failed, self._begins = ask, done, failed, begins
        self._instructions = instructions.replace("{done}", done).replace("{failed}", failed)
        self._turn = 0

    def reset(self, row: dict[str, Any], seed: int) -> str | None:
        """Start the conversation of ``row``."""
        self._seed, self._turn = seed, 0
        told = row.get("partner") or ""
        self._partners = [str(one) for one in (told if isinstance(told, list) else [told])]
        prompt = row.get("prompt")
        self._talk: list[tuple[str, str]] = []  # the speaker ("" is the policy), and the text
        for message in prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]:
            if message["role"] != "system":
                name = "" if message["role"] == "assistant" else self._name(0)
                self._talk.append((name, str(message.get("content") or "")))
        return self._round() if self._begins else None

    def step(self, message: Message) -> Observation:
        """Get every partner's answer; the conversation ends where one says so."""
        self._talk.append(("", str(message.get("content") or "")))
        said = self._round()
        for word, worth in ((self._done, 1.0), (self._failed, 0.0)):
            if word and word in said:
                return Observation(said.replace(word, "").strip(), worth, done=True)
        return Observation(said)

    def _round(self) -> str:
        answers = []
        for place in range(len(self._partners)):
            said = self._ask(self._seen_by(place), self._seed + self._turn)
            self._turn += 1
            self._talk.append((self._name(place), said))
            answers.append(said if len(self._partners) == 1 else f"{self._name(place)}: {said}")
        return "\n".join(answers)

    def _name(self, place: int) -> str:
        return f"Person {place + 1}"

    def _seen_by(self, place: int) -> list[Message]:
        """Return the conversation from a partner's view: its own turns are the assistant's, all others the user's."""
        told = "\n\n".join(filter(None, [self._instructions, self._partners[place]]))
        if len(self._partners) > 1:
            told += f"\n\nYou are {self._name(place)}."
        messages: list[Message] = [{"role": "system", "content": told}]
        for name, said in self._talk:
            role = "assistant" if name == self._name(place) else "user"
            text = f"{name}: {said}" if name and role == "user" else said
            if messages[-1]["role"] == role:
                messages[-1] = {"role": role, "content": f"{messages[-1]['content']}\n{text}"}
            else:
                messages.append({"role": role, "content": text})
        if messages[-1]["role"] != "user":  # many servers answer only a user
            messages.append({"role": "user", "content": "..."})
        return messages
