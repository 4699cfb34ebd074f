"""Completions for a step's prompts: who answers, with which seeds, and what the answers are worth."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from posttrain.contract.generation import Completion, Sampling
from posttrain.contract.images import Image
from posttrain.contract.planning import SampleRequest
from posttrain.contract.rollout import Rollout, Rollouts
from posttrain.data.tokens.encode_one import encode_answer
from posttrain.errors import DataError, SettingsError
from posttrain.generation.local.hf import HfGenerator
from posttrain.generation.local.mixture import MixtureGenerator
from posttrain.rewards import Reward, score

if TYPE_CHECKING:
    from posttrain.network.token_model import TokenModel
    from posttrain.rollouts.episodes import EpisodePlayer
    from posttrain.training.run import Compute

#: Columns that describe a prompt to the core and are nothing to a reward.
_OWN = ("prompt", "prompt_text")


@dataclass
class PromptRequest:
    """What one prompt is to be given: its place in the step, its row, and the completions asked for."""

    place: int
    index: int
    """Of its row in the data."""
    row: Any
    asks: list[SampleRequest]
    seeds: list[list[int]]
    """For each ask, one seed a completion."""


@dataclass(eq=False)
class GenerateCall:
    """Completions of one kind for some of this rank's orders: what a generator is asked for at one time."""

    kind: SampleRequest
    place: int
    """Which of its asks, for every order."""
    chosen: list[int]
    """Places of the orders among this rank's."""
    orders: list[PromptRequest]
    sampling: Sampling
    player: EpisodePlayer | None = None
    """What plays episodes, where an environment answers."""

    @property
    def by_policy(self) -> bool:
        """Whether the run's generator answers; everybody else is asked when the answers are needed."""
        return self.kind.source == "policy" and not self.kind.mixture

    @property
    def prompts(self) -> list[Tensor]:
        """Tokens ``(n,)`` of each prompt."""
        return [order.row.sequences["prompt"][0].ids for order in self.orders]

    @property
    def images(self) -> list[list[Image]]:
        """Pictures of each prompt."""
        return [list(order.row.sequences["prompt"][0].images) for order in self.orders]

    def run(self, generator: Any) -> list[list[Completion]]:
        """Let ``generator`` answer. Raises SettingsError where it cannot be shown the prompts' pictures."""
        seeds = [order.seeds[self.place] for order in self.orders]
        shown = any(self.images)
        if shown and (self.player is not None or self.kind.mixture):
            who = "an environment's episodes" if self.player is not None else "a mixture of two models"
            raise SettingsError(f"Prompts have images, which {who} cannot show. Leave the images or the other out.")
        if self.player is not None:
            rows = [order.row.columns for order in self.orders]
            return self.player.play(generator, self.prompts, rows, self.sampling, seeds)
        if shown:
            return generator.generate(self.prompts, self.sampling, seeds, self.images)
        return generator.generate(self.prompts, self.sampling, seeds)


def generate_calls(
    mine: list[PromptRequest], sampling: Sampling, player: EpisodePlayer | None = None
) -> list[GenerateCall]:
    """Calls that answer this rank's orders, each of one kind; with ``player`` in episodes."""
    kinds = dict.fromkeys((_kind(ask), place) for order in mine for place, ask in enumerate(order.asks))
    calls = []
    for kind, place in kinds:
        chosen = [i for i, order in enumerate(mine) if place < len(order.asks) and _kind(order.asks[place]) == kind]
        settings = replace(sampling, greedy=True) if kind.greedy else sampling
        calls.append(GenerateCall(kind, place, chosen, [mine[i] for i in chosen], settings, player))
    return calls


def answer(
    compute: Compute,
    orders: list[PromptRequest],
    calls: list[GenerateCall],
    ask: Callable[[GenerateCall], list[list[Completion]]],
    own_weights: bool,
) -> list[Rollout]:
    """Rollouts for ``orders``, made by all ranks together, prompt after prompt and ask after ask, on every rank.

    ``calls`` are those of this rank's orders; ``ask`` gives what the policy's generator answers to one of them, which
    has weights of its own or runs the policy itself.
    """
    mine = compute.strategy.scatter(orders)
    groups: list[list[list[Rollout]]] = [[[] for _ in order.asks] for order in mine]
    with compute.strategy.gathered(*_answering(compute, orders, own_weights)):
        for call in calls:
            found = _paired(call, ask(call)) if call.by_policy else _complete(compute, call)
            for index, completions in zip(call.chosen, found, strict=True):
                answers = [_rollout(mine[index], call.place, prompt, one) for prompt, one in completions]
                groups[index][call.place] = answers
    flat = [[item for ask_ in asks for item in ask_] for asks in groups]
    return [item for group in compute.strategy.gather(flat) for item in group]


def _paired(call: GenerateCall, found: list[list[Completion]]) -> list[list[tuple[Tensor, Completion]]]:
    return [
        [(prompt if one.episode is None else one.episode.prompt_ids, one) for one in group]
        for prompt, group in zip(call.prompts, found, strict=True)
    ]


def _answering(compute: Compute, orders: list[PromptRequest], own_weights: bool) -> list[TokenModel]:
    """The models in this process that any rank will let answer."""
    asks = [ask for order in orders for ask in order.asks]
    sources = {("teacher" if ask.source == "teacher" else "reference") if ask.mixture else ask.source for ask in asks}
    models = [] if own_weights and not any(ask.mixture for ask in asks) else [compute.policy]
    for source in sorted(sources - {"policy", "data"}):
        with _frozen(compute, source).active() as model:
            models.append(model)
    return models


def _kind(ask: SampleRequest) -> SampleRequest:
    """What two asks must have in common to be answered together."""
    return replace(ask, samples=1, reward_as="", compared_as="")


def _rollout(order: PromptRequest, place: int, prompt_ids: Tensor, completion: Completion) -> Rollout:
    ask = order.asks[place]
    source = "mixture" if ask.mixture else ask.source
    columns = dict(order.row.columns)
    if completion.episode is not None:
        columns["messages"] = completion.episode.messages
    return Rollout(
        order.place,
        prompt_ids,
        completion,
        columns,
        source=source,
        reward_as=ask.reward_as,
        compared_as=ask.compared_as,
        images=order.row.sequences["prompt"][0].images,
    )


def _complete(compute: Compute, call: GenerateCall) -> list[list[tuple[Tensor, Completion]]]:
    """For each order the prompt's tokens with each completion, by whoever is not the policy alone."""
    kind, size = call.kind, compute.settings.generation.generation_batch_size
    if kind.source == "data":
        return [[_from_data(compute, order.row)] * order.asks[call.place].samples for order in call.orders]
    frozen: Any = nullcontext() if kind.mixture else _frozen(compute, kind.source).active()
    with compute.autocast(), frozen as other:
        generator: Any
        if kind.mixture:
            partner = _frozen(compute, "teacher" if kind.source == "teacher" else "reference")
            generator = MixtureGenerator(
                compute.policy,
                partner,
                kind.mixture,
                compute.tokenizer,
                compute.stop_ids,
                size,
                kind.mean == "arithmetic",
            )
        else:
            generator = HfGenerator(
                other.model,
                compute.tokenizer,
                compute.stop_ids,
                size,
                compute.settings.generation.generation_cache_tokens,
            )
        return _paired(call, call.run(generator))


def _frozen(compute: Compute, source: str) -> Any:
    frozen = getattr(compute, source)
    if frozen is None or not hasattr(frozen, "active") or getattr(frozen, "tokenizer", None) is not None:
        raise SettingsError(
            f"'{compute.card.name}' lets the {source} answer; it has to be a local model with the policy's tokeniser."
        )
    return frozen


def _from_data(compute: Compute, row: Any) -> tuple[Tensor, Completion]:
    """The row's own answer as a completion; what the policy thinks of it is not known."""
    if row.columns.get("completion") is None:
        raise DataError(
            f"'{compute.card.name}' learns from the data's own answers, and a row has no column 'completion'. "
            "Name it with --columns completion=NAME."
        )
    prompt, ids, text = encode_answer(row.columns, compute.tokenizer, compute.settings.data, compute.stop_ids)
    unknown = torch.full((len(ids),), math.nan)
    return prompt, Completion(ids, unknown, bool(len(ids)) and int(ids[-1]) in compute.stop_ids, text)


def give_rewards(compute: Compute, rewards: list[Reward], items: list[Rollout]) -> int:
    """Score every item, each rank its share; returns how many got no score from any reward.

    What an environment gave in an episode is added. Without any reward every item is worth 0: the method learns from
    something else.
    """
    if not rewards:
        for item in items:
            item.reward = 0.0
        _add_episodes(items, alone=True)
        return 0
    mine = compute.strategy.scatter(list(range(len(items))))
    names = [name for name in (items[0].columns if items else ()) if name not in _OWN]
    columns = {name: [items[i].columns.get(name) for i in mine] for name in names}
    if any(item.images for item in items):
        columns["images"] = [[image.picture() for image in items[i].images] for i in mine]
    prompts = [items[i].columns.get("prompt") for i in mine]
    remarks: dict[str, list[Any]] = {}
    total, parts = score(rewards, prompts, [items[i].completion.text for i in mine], columns, remarks)
    scored = [
        (float(total[k]), {n: float(v[k]) for n, v in parts.items()}, {n: v[k] for n, v in remarks.items()})
        for k in range(len(mine))
    ]
    for item, (value, by_name, said) in zip(items, compute.strategy.gather(scored), strict=True):
        item.reward, item.parts = value, by_name
        item.columns |= said
    _add_episodes(items, alone=False)
    return sum(item.reward != item.reward for item in items)


def _add_episodes(items: list[Rollout], alone: bool) -> None:
    """Add to each rollout's reward what its environment gave: 0 for an episode that ended before it gave any.

    ``alone``: there are no other rewards.
    """
    episodes = [item.completion.episode for item in items]
    if not any(one is not None and (alone or one.scored) for one in episodes):
        return
    for item, episode in zip(items, episodes, strict=True):
        value = sum(episode.rewards) if episode is not None else 0.0
        item.parts = item.parts | {"environment": value}
        item.reward = value + (item.reward if item.reward == item.reward else 0.0)


def _opponents(items: list[Rollout], served: list[int], opponents: list[int]) -> list[tuple[int, int]]:
    """Each served rollout with one of its prompt's opponents, in turn."""
    pairs = []
    for group in dict.fromkeys(items[i].group for i in served):
        theirs = [i for i in opponents if items[i].group == group]
        own = [i for i in served if items[i].group == group]
        pairs += [(one, theirs[place % len(theirs)]) for place, one in enumerate(own) if theirs]
    return pairs


def fold_auxiliary_rollouts(items: list[Rollout], prefer: Callable[[list[int], list[int]], Tensor]) -> list[Rollout]:
    """Take out the rollouts that only serve the others of their prompt, and give those the columns they make.

    ``prefer`` gives the probability ``(P,)`` that some of ``items`` are better answers than others, by their places.
    """
    lenders = [i for i, item in enumerate(items) if item.reward_as or item.compared_as]
    served = [i for i in range(len(items)) if i not in set(lenders)]
    for lender in lenders:
        own = [i for i in served if items[i].group == items[lender].group]
        if name := items[lender].reward_as:
            for i in own:
                items[i].columns[name] = items[lender].reward
    for name in {items[lender].compared_as for lender in lenders} - {""}:
        pairs = _opponents(items, served, [i for i in lenders if items[i].compared_as == name])
        chances = prefer([i for i, _ in pairs], [opponent for _, opponent in pairs])  # (P,)
        for (i, _), chance in zip(pairs, chances.tolist(), strict=True):
            items[i].columns[name] = chance
    return [items[i] for i in served]


def reward_metrics(rewards: Tensor, rollouts: Rollouts) -> dict[str, float]:
    """What the log says of a batch of rollouts; without scores only their lengths."""
    found = {
        "completion_length": float(rollouts.lengths.mean()),
        "truncated_share": float((~rollouts.finished).float().mean()),
    }
    found |= _episode_metrics(rollouts)
    if not rollouts.reward_parts:
        return found
    groups = [rewards[rollouts.group == g] for g in rollouts.group.unique()]
    spread = [float(group.std(correction=0)) for group in groups]
    found |= {
        "reward": float(rewards.mean()),
        "reward_std": sum(spread) / len(spread),
        "zero_spread_share": sum(bool(group.max() == group.min()) for group in groups) / len(groups),
    }
    if len(rollouts.reward_parts) > 1:
        found |= {f"reward_{name}": float(part.nanmean()) for name, part in rollouts.reward_parts.items()}
    return found


def _episode_metrics(rollouts: Rollouts) -> dict[str, float]:
    """What the log says of episodes: turns, calls of tools and those that failed, tokens read, why they ended."""
    episodes = [item.completion.episode for item in rollouts.items if item.completion.episode is not None]
    if not episodes:
        return {}
    answers = [one for episode in episodes for one in episode.messages if one.get("role") == "tool"]
    failed = [one for one in answers if str(one.get("content", "")).startswith("Error: ")]
    return {
        "turns": sum(len(one.rewards) for one in episodes) / len(episodes),
        "tool_calls": len(answers) / len(episodes),
        "tool_errors": len(failed) / max(1, len(answers)),
        "environment_tokens": sum(int((~one.sampled).sum()) for one in episodes) / len(episodes),
        "episodes_done": sum(one.end == "done" for one in episodes) / len(episodes),
    }
