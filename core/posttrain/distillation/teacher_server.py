"""A teacher behind a vLLM server: its top tokens with their log-probs, completed to a whole distribution."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from posttrain.contract.views import Sequence
from posttrain.errors import ModelError
from posttrain.servers.endpoint import Endpoint, Refused, Unreachable, read_key, split_address

#: Probability spread over the unknown tokens where the known ones leave none.
FLOOR = 1e-9
#: Probability that a teacher may give to tokens outside the policy's vocabulary before the two count as different.
_STRAY = 0.01
_TOO_MANY = re.compile(r"greater than max allowed: (\d+)")


class TeacherServer:
    """Asks vLLM's ``/v1/completions`` for the log-probs of given tokens. The generated token is not used.

    ``url`` is ``http://HOST:PORT/v1``; without a ``model`` the server must have exactly one. ``vocabulary`` is the
    number of tokens of the distributions. A key is read from OPENAI_API_KEY. Sends one request at once, so that a wrong
    address or limit shows early. Raises ModelError and SettingsError.
    """

    def __init__(self, url: str, model: str | None, top_k: int, vocabulary: int):
        address, named = split_address(url, "teacher-model")
        if not 1 <= top_k <= vocabulary:
            raise ModelError(f"teacher-top-k is {top_k}, expected a number from 1 to the vocabulary's {vocabulary}.")
        self.endpoint = Endpoint(address, read_key(address, None), timeout=300.0)
        self.model = model or named
        self.top_k = top_k
        self.vocabulary = vocabulary
        names = self._request(lambda: self.endpoint.models(attempts=2))
        if self.model is None and len(names) == 1:
            self.model = names[0]
        if self.model not in names:
            raise ModelError(
                f"The teacher at {address} has the models {', '.join(names[:5]) or 'none'}, not "
                f"{self.model or 'exactly one'}. Name one: --teacher-model http://HOST:PORT/v1#MODEL"
            )
        self._score([0, 0])

    def top_logps(self, sequences: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return indices ``(n-1, k+1)`` int64 and log-probs ``(n-1, k+1)`` float32 of the next tokens of ``(n,)`` ids.

        Row ``i`` is the distribution after token ``i``: the k likeliest tokens, likeliest first, then the token that
        does follow, which may repeat one of the k. Log-probs are at temperature 1. Raises ModelError.
        """
        return self.endpoint.each(self._score, [sequence.tolist() for sequence in sequences])

    def _score(self, ids: list[int]) -> tuple[Tensor, Tensor]:
        if len(ids) < 2:
            return torch.zeros(0, self.top_k + 1, dtype=torch.long), torch.zeros(0, self.top_k + 1)
        asked = {"model": self.model, "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": self.top_k}
        found = self._request(lambda: self.endpoint.post("/completions", asked))
        try:
            rows = found["choices"][0]["prompt_logprobs"]
            if not isinstance(rows, list) or len(rows) != len(ids):
                raise self._unknown_form(found)
            entries = [self._row(row, token) for row, token in zip(rows[1:], ids[1:], strict=True)]
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            raise self._unknown_form(found) from None
        indices, logps = zip(*entries, strict=True)
        return torch.tensor(indices, dtype=torch.long), torch.tensor(logps, dtype=torch.float32)  # (n-1, k+1) both

    def _row(self, row: dict[str, Any], token: int) -> tuple[list[int], list[float]]:
        """Return indices and log-probs ``(k+1,)`` of one distribution."""
        found = {int(name): float(value["logprob"]) for name, value in row.items()}
        likely = sorted(found, key=lambda index: -found[index])
        if len(likely) > self.top_k:  # vLLM adds the token itself where it is not among the likeliest
            likely.remove(token)
        stray = [index for index in likely if index >= self.vocabulary]
        share = sum(math.exp(found[index]) for index in stray)
        if share > _STRAY:
            raise ModelError(
                f"The teacher at {self.endpoint.url} gives token {stray[0]} and others like it a probability of "
                f"{share:.2g}, but the policy has {self.vocabulary} tokens. A teacher behind a server must have the "
                "policy's tokeniser."
            )
        # Rows that only pad the teacher's matrix are no tokens of the policy.
        likely = [index for index in likely if index < self.vocabulary][: self.top_k]
        likely += [token] * (self.top_k + 1 - len(likely))
        return likely, [found[index] for index in likely]

    def _request(self, ask: Callable[[], Any]) -> Any:
        start = f"vllm serve {self.model or 'MODEL'} --max-logprobs {self.top_k}"
        try:
            return ask()
        except Unreachable as error:
            raise ModelError(
                f"The teacher at {self.endpoint.url} cannot be reached ({error}). Start it with: {start}"
            ) from None
        except Refused as error:
            most = _TOO_MANY.search(error.message)
            if most:
                raise ModelError(
                    f"The teacher at {self.endpoint.url} gives at most {most[1]} log-probs a token, teacher-top-k is "
                    f"{self.top_k}. Start it with: {start}"
                ) from None
            if "context length" in error.message:
                raise ModelError(
                    f"The teacher at {self.endpoint.url} answers {error}. Start it with a larger --max-model-len, or "
                    "lower max-length and max-new-tokens."
                ) from None
            raise ModelError(
                f"The teacher at {self.endpoint.url} answers {error}. Expected a vLLM server: {start}"
            ) from None

    def _unknown_form(self, found: Any) -> ModelError:
        return ModelError(
            f"The teacher at {self.endpoint.url} returns no prompt_logprobs for each token: {str(found)[:120]!r}. "
            f"Expected a vLLM server: vllm serve {self.model} --max-logprobs {self.top_k}"
        )


class ServerTeacher:
    """The server as a teacher: whole distributions of the trained tokens, over the policy's tokens."""

    tokenizer = None

    def __init__(self, url: str, model: str | None, top_k: int, vocabulary: int, device: torch.device):
        self.server = TeacherServer(url, model, top_k, vocabulary)
        self.device = device

    def logits(self, sequences: list[Sequence], temperature: float) -> Callable[[slice], Tensor]:
        """Return logits ``(c, V)`` of the trained tokens of ``sequences``, by chunk; the server is asked now."""
        if any(sequence.images for sequence in sequences):
            raise ModelError("A teacher behind a server is not shown images, and rows have some. Use a folder.")
        rows = self.server.top_logps([sequence.ids for sequence in sequences])
        trained = [sequence.trained[1:].cpu() for sequence in sequences]
        # The first token is never trained: row i of the answer predicts token i + 1.
        indices = torch.cat([row[keep] for (row, _), keep in zip(rows, trained, strict=True)]).to(
            self.device
        )  # (n, k+1)
        logps = torch.cat([row[keep] for (_, row), keep in zip(rows, trained, strict=True)]).to(self.device)  # (n, k+1)

        def chunk(at: slice) -> Tensor:
            return spread(indices[at], logps[at], self.server.vocabulary) / temperature

        return chunk


def spread(indices: Tensor, logps: Tensor, vocabulary: int) -> Tensor:
    """Complete log-probs ``logps`` ``(m, c)`` at ``indices`` ``(m, c)`` to whole distributions ``(m, V)``.

    Known tokens keep their log-probs; the rest up to 1, or 1e-9 where there is none, is spread uniformly over the
    others. An index may occur several times in a row, with the same log-prob.
    """
    ordered, order = indices.sort(dim=1)  # (m, c) both
    new = torch.ones_like(ordered, dtype=torch.bool)  # (m, c)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    known = (logps.gather(1, order).double().exp() * new).sum(1)  # (m,)
    others = (vocabulary - new.sum(1)).clamp_min(1)  # (m,)
    rest = ((1.0 - known).clamp_min(FLOOR) / others).log()  # (m,)
    whole = rest.to(logps.dtype)[:, None].repeat(1, vocabulary)  # (m, V)
    return whole.scatter_(1, indices, logps)
