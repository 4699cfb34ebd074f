"""A judge behind an OpenAI-compatible chat server."""

from __future__ import annotations

import re
from typing import Any

from posttrain.contract.images import portable_value
from posttrain.errors import RewardError
from posttrain.rewards.judge_prompt import fill, fill_parts, probability, read_template
from posttrain.servers.endpoint import Endpoint, Refused, Unreachable, read_key, split_address

_ADDRESS = "--judge http://HOST:PORT/v1#MODEL"
#: Alternatives of a token requested from a server that does not give 20.
_FEWER = 5
#: Errors of servers about questions that retries cannot answer: there is no verdict then.
_UNANSWERABLE = re.compile(r"context.?(length|size|window)|content.?(filter|management)", re.IGNORECASE)


class ServerJudge:
    """Asks a chat server for the better answer: ``(prompts, firsts, seconds)`` to probabilities or None.

    ``address`` is ``http://HOST:PORT/v1#MODEL``; without a model the server must have exactly one. The options are
    those of ``--judge-options``. Sends one question at once, so that a wrong address, key or model shows before a run.
    Raises SettingsError and RewardError.
    """

    def __init__(
        self,
        address: str,
        template: str | None = None,
        key_env: str | None = None,
        timeout: float = 120.0,
        retries: int = 4,
        workers: int = 8,
        max_tokens: int = 16,
    ):
        url, model = split_address(address, "judge")
        self.template = read_template(template)
        self.endpoint = Endpoint(url, read_key(url, key_env), timeout, 1 + retries, workers)
        #: Parameters that are dropped, or renamed, once a server rejects them.
        self.optional: dict[str, Any] = {
            "max_tokens": max_tokens,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 20,
        }
        self.model = model or self._only_model()
        self._try()

    def __call__(
        self, prompts: list[Any], firsts: list[str], seconds: list[str], images: list[list[Any]] | None = None
    ) -> list[float | None]:
        """Return the probabilities that the first answers are better. Raises RewardError without an answer.

        Images are sent as data URLs; a model of text behind the server refuses them.
        """
        pairs = zip(prompts, firsts, seconds, images or [[] for _ in prompts], strict=True)
        return self.endpoint.each(self._verdict, [self._question(*pair) for pair in pairs])

    def _question(self, prompt: Any, first: str, second: str, images: list[Any]) -> Any:
        """Return the content of a message: a text, or parts where the prompt has images."""
        if not images:
            return fill(self.template, prompt, first, second)
        waiting = [{"type": "image_url", "image_url": {"url": portable_value(one)}} for one in images]
        parts = fill_parts(self.template, prompt, first, second, len(images))
        return [waiting.pop(0) if part["type"] == "image" else part for part in parts]

    def _verdict(self, content: Any) -> float | None:
        answer = self._answer(content)
        return None if answer is None else probability(*answer)

    def _answer(self, content: Any, attempts: int | None = None) -> tuple[str, Any] | None:
        """Return the text of the server's answer and the log-probs of its tokens; None where it cannot answer."""
        try:
            found = self._post(content, attempts)
        except Unreachable as error:
            raise self._unreachable(error) from None
        except Refused as error:
            if error.status in (400, 413, 422) and _UNANSWERABLE.search(error.message):
                return None
            raise self._refused(error) from None
        try:
            choice = found["choices"][0]
            said = choice["message"].get("content")
            tokens = (choice.get("logprobs") or {}).get("content")
            return (said, _checked(tokens)) if isinstance(said, str) else ("", None)
        except (KeyError, IndexError, TypeError, AttributeError):
            raise RewardError(
                f"The judge at {self.endpoint.url} answers in a form that is not a chat completion: "
                f"{str(found)[:200]!r}. Expected an OpenAI-compatible server: {_ADDRESS}"
            ) from None

    def _post(self, content: Any, attempts: int | None) -> Any:
        while True:
            sent = dict(self.optional)
            payload = {"model": self.model, "messages": [{"role": "user", "content": content}], **sent}
            try:
                return self.endpoint.post("/chat/completions", payload, attempts)
            except Refused as error:
                known = error.status in (400, 422) and not _UNANSWERABLE.search(error.message)
                if not known or not self._give_up(sent, error.message):
                    raise

    def _give_up(self, sent: dict[str, Any], message: str) -> bool:
        """Stop sending what the server's ``message`` rejects; return whether that changed anything."""
        if "max_tokens" in sent and "max_completion_tokens" in message:
            self.optional["max_completion_tokens"] = sent["max_tokens"]
            self.optional.pop("max_tokens", None)
            return True
        objected = [name for name in ("temperature", "logprobs", "top_logprobs") if name in sent and name in message]
        if "logprobs" in message and sent.get("top_logprobs", 0) > _FEWER:
            self.optional["top_logprobs"] = _FEWER
            return True
        if "logprobs" in objected:
            objected.append("top_logprobs")  # useless alone, and some servers reject it
        for name in objected:
            self.optional.pop(name, None)
        return bool(objected)

    def _only_model(self) -> str:
        try:
            names = self.endpoint.models(attempts=min(2, self.endpoint.attempts))
        except Unreachable as error:
            raise self._unreachable(error) from None
        except Refused as error:
            raise self._refused(error) from None
        if len(names) != 1:
            raise RewardError(
                f"The judge at {self.endpoint.url} has {len(names)} models ({', '.join(names[:5]) or 'none'}). "
                f"Name one: {_ADDRESS}"
            )
        return names[0]

    def _try(self) -> None:
        """Send one question that any judge can answer."""
        question = fill(self.template, "What is 1 + 1?", "2", "3")
        answer = self._answer(question, attempts=min(2, self.endpoint.attempts))
        if answer is None or probability(*answer) is None:
            raise RewardError(
                f"The judge {self.model} at {self.endpoint.url} answers {(answer or [''])[0][:80]!r} to a trial "
                "question, expected A or B. A model that thinks first needs more room: "
                "--judge-options max_tokens=2048"
            )

    def _unreachable(self, error: Unreachable) -> RewardError:
        return RewardError(
            f"The judge at {self.endpoint.url} cannot be reached ({error}). Start the server, or mend the address: "
            f"{_ADDRESS}"
        )

    def _refused(self, error: Refused) -> RewardError:
        if error.status in (401, 403):
            return RewardError(
                f"The judge at {self.endpoint.url} refuses the key ({error}). Name the environment variable that "
                "holds it: --judge-options key_env=NAME"
            )
        return RewardError(
            f"The judge at {self.endpoint.url} answers {error}. Expected an OpenAI-compatible server and a model "
            f"that it has: {_ADDRESS}"
        )


def _checked(tokens: Any) -> Any:
    """Return ``tokens`` if they have the documented form. Raises KeyError or TypeError."""
    for token in tokens or []:
        for entry in (token, *(token.get("top_logprobs") or [])):
            entry["token"] + "", entry["logprob"] + 0.0
    return tokens
