"""Sampling from a mixture of two models, geometric or arithmetic, token by token.

Sources: the geometric one Munos et al. 2023, "Nash Learning from Human Feedback", arXiv:2312.00886, section 7; the
arithmetic one Gu et al. 2023, "MiniLLM", arXiv:2306.08543, section 2.2. Both models read every token, so both must be
in this process.
"""

from __future__ import annotations

import math
import random
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.contract.generation import Completion, Sampling
from posttrain.contract.images import Image
from posttrain.contract.views import Sequence
from posttrain.errors import SettingsError
from posttrain.generation.local.sampling import choose
from posttrain.network.images import Slots
from posttrain.network.modes import evaluating
from posttrain.network.token_model import place_images

#: Logit of a token that exists in the policy's vocabulary alone.
_NEVER = -1e4

if TYPE_CHECKING:
    from posttrain.models.frozen import Frozen
    from posttrain.network.token_model import TokenModel


class MixtureGenerator:
    """Completes prompts from ``policy^(1 - share) * other^share``, normalised, at the sampling temperature.

    ``arithmetic``: from ``(1 - share) * policy + share * other``, each at the sampling temperature.
    """

    def __init__(
        self,
        policy: TokenModel,
        other: Frozen,
        share: float,
        tokenizer: Any,
        stop_ids: set[int],
        batch_size: int,
        arithmetic: bool = False,
    ):
        """Mix two models with the same tokeniser; ``share`` is that of ``other``. Raises SettingsError outside 0..1."""
        if not 0 <= share <= 1:
            raise SettingsError(f"The share of the other model in a mixture is {share}. It must lie between 0 and 1.")
        self.arithmetic = arithmetic
        self.policy, self.other, self.share = policy, other, share
        self.tokenizer, self.stop_ids, self.batch_size = tokenizer, frozenset(stop_ids), batch_size

    @torch.no_grad()
    def generate(
        self,
        prompts: list[Tensor],
        sampling: Sampling,
        seeds: list[list[int]],
        images: list[list[Image]] | None = None,
    ) -> list[list[Completion]]:
        """Complete each prompt ``(n,)`` once per seed; log-probs are the mixture's.

        Both models are shown the prompts' images. Raises ModelError where one of them reads text alone.
        """
        own_images = images if images is not None else [[] for _ in prompts]
        texts = [
            Sequence(prompt, torch.zeros(len(prompt), dtype=torch.bool), images=tuple(own))
            for prompt, own in zip(prompts, own_images, strict=True)
        ]
        jobs = [(index, seed) for index, own in enumerate(seeds) for seed in own]
        done: list[Completion] = []
        with evaluating(self.policy):
            for start in range(0, len(jobs), self.batch_size):
                wave = jobs[start : start + self.batch_size]
                randoms = [random.Random(seed) for _, seed in wave]
                done += self._complete([texts[index] for index, _ in wave], randoms, sampling)
        found: list[list[Completion]] = [[] for _ in prompts]
        for (index, _), completion in zip(jobs, done, strict=True):
            found[index].append(completion)
        return found

    def _complete(self, prompts: list[Sequence], randoms: list[random.Random], sampling: Sampling) -> list[Completion]:
        device, count = self.policy.device, len(prompts)
        lengths = torch.tensor([len(prompt) for prompt in prompts])  # (n,)
        width = int(lengths.max())
        mask = (torch.arange(width) >= (width - lengths)[:, None]).long().to(device)  # (n, w): prompts end together
        tokens = torch.zeros(count, width, dtype=torch.long, device=device)
        for row, prompt in enumerate(prompts):
            tokens[row, width - len(prompt) :] = prompt.ids
        readers = (_Reader(prompts), _Reader(prompts))
        ids: list[list[int]] = [[] for _ in prompts]
        logps: list[list[float]] = [[] for _ in prompts]
        finished = [False] * count
        for _ in range(sampling.max_new_tokens):
            logits = self._mixed(tokens, mask, readers, sampling.logp_temperature)  # (n, V)
            chosen, chances = choose(logits, sampling, [one.random() for one in randoms])
            for row, (token, logp) in enumerate(zip(chosen.tolist(), chances.tolist(), strict=True)):
                if not finished[row]:
                    ids[row].append(token)
                    logps[row].append(logp)
                    finished[row] = token in self.stop_ids or self._stopped(ids[row], sampling.stop)
            if all(finished):
                break
            tokens = chosen[:, None]
            mask = torch.cat([mask, mask.new_ones(count, 1)], 1)
        return [
            Completion(torch.tensor(own), torch.tensor(logps[row]), finished[row], self._text(own))
            for row, own in enumerate(ids)
        ]

    def _mixed(self, tokens: Tensor, mask: Tensor, readers: tuple[_Reader, _Reader], temperature: float) -> Tensor:
        """Return the mixture's logits ``(n, V)`` of the next token; both readers read ``tokens`` ``(n, t)``."""
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]  # (n, t)
        with self.other.active() as other:
            last = other.inner.get_input_embeddings().weight.shape[0] - 1
            theirs = readers[1].next(other, tokens.clamp(max=last), mask, positions)
        ours = readers[0].next(self.policy, tokens.clone(), mask, positions)
        missing = ours.shape[1] - theirs.shape[1]  # sizes of one family pad their vocabularies differently
        theirs = F.pad(theirs, (0, missing), value=_NEVER) if missing > 0 else theirs[:, : ours.shape[1]]
        if not self.arithmetic:
            return (1 - self.share) * ours.log_softmax(-1) + self.share * theirs.log_softmax(-1)
        ours, theirs = ((one / temperature).log_softmax(-1) for one in (ours, theirs))
        log_share, log_other = (math.log(part) if part else -math.inf for part in (1 - self.share, self.share))
        return temperature * torch.logaddexp(log_share + ours, log_other + theirs)

    def _stopped(self, ids: list[int], stop: tuple[str, ...]) -> bool:
        return bool(stop) and any(text in self._text(ids) for text in stop)

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


class _Reader:
    """Keys and values of one of the models, from the prompts on."""

    def __init__(self, prompts: list[Sequence]):
        self._prompts = prompts
        self._cache: Any = None
        self._shifts = torch.zeros(len(prompts), 1, dtype=torch.long)  # (n, 1)

    def next(self, model: TokenModel, tokens: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Return the logits ``(n, V)`` after ``tokens`` ``(n, t)``: the prompts, then one token of each answer."""
        arguments: dict[str, Any] = {"input_ids": tokens, "attention_mask": mask}
        arguments["position_ids"] = positions + self._shifts.to(positions.device)
        if getattr(model.inner.config, "output_router_logits", False):
            arguments["output_router_logits"] = False  # the router loss cannot be computed from new columns alone
        shown: AbstractContextManager[dict[str, Any]] = nullcontext({})
        if self._cache is None:
            shown = self._shown(model, tokens)
        with shown as pictures:
            output = model.model(**{**arguments, **pictures}, past_key_values=self._cache, use_cache=True)
        self._cache = output.past_key_values
        return output.logits[:, -1].float()

    def _shown(self, model: TokenModel, tokens: Tensor) -> AbstractContextManager[dict[str, Any]]:
        """Return the arguments for the images of the prompts, which end together."""
        count, width = tokens.shape
        places = [
            torch.arange((row + 1) * width - len(one), (row + 1) * width) for row, one in enumerate(self._prompts)
        ]
        if model.images is not None:
            self._shifts = torch.tensor([[model.images.shift(model.decoder, one)] for one in self._prompts])
        return place_images(model.decoder, model.images, Slots(self._prompts, places, (count, width)), tokens)
