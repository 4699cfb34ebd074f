"""Client of a model behind an OpenAI-compatible chat server: messages in, its answer out."""

from __future__ import annotations

from typing import Any

from posttrain.errors import RunFailed, SettingsError
from posttrain.servers.endpoint import Endpoint, Refused, Unreachable, read_key, split_address

#: Options that some servers reject; they are dropped after the first rejection.
_OPTIONAL = ("seed", "temperature", "max_tokens", "max_completion_tokens")


class Chat:
    """Asks the model at ``http://HOST:PORT/v1#MODEL``; without a model the server must have exactly one.

    Safe to use from several threads. Raises SettingsError for an unusable address.
    """

    def __init__(
        self,
        address: str,
        what: str,
        key_env: str | None = None,
        timeout: float = 120.0,
        retries: int = 4,
        **options: Any,
    ):
        """Connect. ``what`` names the model in errors; ``options`` are part of every question."""
        url, model = split_address(address, what)
        self.what, self.options = what, options
        self.endpoint = Endpoint(url, read_key(url, key_env), timeout, 1 + retries)
        self.model = model or self._only_model()

    def ask(self, messages: list[dict[str, Any]], seed: int) -> str:
        """Return the model's answer. Raises RunFailed where the server gives none."""
        while True:
            sent = self.options | {"seed": seed % 2**31} if "seed" in self.options else dict(self.options)
            try:
                found = self.endpoint.post("/chat/completions", {"model": self.model, "messages": messages} | sent)
                break
            except Unreachable as error:
                raise RunFailed(f"{self._place} cannot be reached ({error}). Start the server.") from None
            except Refused as error:
                if error.status not in (400, 422) or not self._give_up(sent, error.message):
                    raise RunFailed(f"{self._place} answers {error}.") from None
        try:
            return str(found["choices"][0]["message"].get("content") or "")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise RunFailed(
                f"{self._place} answers in a form that is not a chat completion: {str(found)[:200]!r}."
            ) from None

    @property
    def _place(self) -> str:
        return f"The {self.what} at {self.endpoint.url}"

    def _give_up(self, sent: dict[str, Any], message: str) -> bool:
        """Stop sending what ``message`` rejects; return whether that changed anything."""
        kept = dict(self.options)
        if "max_tokens" in sent and "max_completion_tokens" in message:
            kept["max_completion_tokens"] = kept.pop("max_tokens", sent["max_tokens"])
        else:
            for name in _OPTIONAL:
                if name in sent and name in message:
                    kept.pop(name, None)
        changed, self.options = kept.keys() != sent.keys(), kept
        return changed

    def _only_model(self) -> str:
        try:
            names = self.endpoint.models(attempts=min(2, self.endpoint.attempts))
        except (Unreachable, Refused) as error:
            raise SettingsError(
                f"{self._place} does not tell its models ({error}). Start it, or name one: #MODEL"
            ) from None
        if len(names) != 1:
            raise SettingsError(
                f"{self._place} has {len(names)} models ({', '.join(names[:5]) or 'none'}). Name one: #MODEL"
            )
        return names[0]
