"""Completions for a step's prompts: which model answers, with which seeds, and their rewards."""

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

#: Columns that describe a prompt to the core and that no reward gets.
_OWN = ("prompt", "prompt_text")


@dataclass
class PromptRequest:
    """Request for one prompt: its place in the step, its row, and the completions wanted."""

    place: int
    index: int
    """Index of its row in the data."""
    row: Any
    asks: list[SampleRequest]
    seeds: list[list[int]]
    """For each ask, one seed a completion."""


@dataclass(eq=False)
class GenerateCall:
    """Completions of one kind for some of this rank's orders: one call of a generator."""

    kind: SampleRequest
    place: int
    """Index of the ask, the same for every order."""
    chosen: list[int]
    """Places of the orders among this rank's."""
    orders: list[PromptRequest]
    sampling: Sampling
    player: EpisodePlayer | None = None
    """Plays episodes in runs with an environment."""

    @property
    def by_policy(self) -> bool:
        """Whether the run's generator answers; all others are asked when the completions are needed."""
        return self.kind.source == "policy" and not self.kind.mixture

    @property
    def prompts(self) -> list[Tensor]:
        """Tokens ``(n,)`` of each prompt."""
        return [order.row.sequences["prompt"][0].ids for order in self.orders]

    @property
    def images(self) -> list[list[Image]]:
        """Images of each prompt."""
        return [list(order.row.sequences["prompt"][0].images) for order in self.orders]

    def run(self, generator: Any) -> list[list[Completion]]:
        """Generate the completions. Raises SettingsError where ``generator`` cannot take images that are shown."""
        seeds = [order.seeds[self.place] for order in self.orders]
        if self.player is not None:
            prompts = [order.row.sequences["prompt"][0] for order in self.orders]
            rows = [order.row.columns for order in self.orders]
            return self.player.play(generator, prompts, rows, self.sampling, seeds)
        if any(self.images):
            return generator.generate(self.prompts, self.sampling, seeds, self.images)
        return generator.generate(self.prompts, self.sampling, seeds)


def generate_calls(
    mine: list[PromptRequest], sampling: Sampling, player: EpisodePlayer | None = None
) -> list[GenerateCall]:
    """Return the calls that answer this rank's orders, each of one kind; with ``player`` as episodes."""
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
    """Return the rollouts of ``orders``, made by all ranks together: by prompt, then by ask, on every rank.

    ``calls`` are those of this rank's orders; ``ask`` returns the completions of the policy's generator for one of
    them. ``own_weights``: the generator has weights of its own, else it runs the policy itself.
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
    """Return the models in this process that any rank asks for completions."""
    asks = [ask for order in orders for ask in order.asks]
    sources = {("teacher" if ask.source == "teacher" else "reference") if ask.mixture else ask.source for ask in asks}
    models = [] if own_weights and not any(ask.mixture for ask in asks) else [compute.policy]
    for source in sorted(sources - {"policy", "data"}):
        with _frozen(compute, source).active() as model:
            models.append(model)
    return models


def _kind(ask: SampleRequest) -> SampleRequest:
    """Reduce an ask to what must agree for two asks to be answered together."""
    return replace(ask, samples=1, baseline_column="", opponent_column="")


def _rollout(order: PromptRequest, place: int, prompt_ids: Tensor, completion: Completion) -> Rollout:
    ask = order.asks[place]
    source = "mixture" if ask.mixture else ask.source
    columns, images = dict(order.row.columns), order.row.sequences["prompt"][0].images
    if completion.episode is not None:
        columns["messages"], images = completion.episode.messages, completion.episode.images
    return Rollout(
        order.place,
        prompt_ids,
        completion,
        columns,
        source=source,
        baseline_column=ask.baseline_column,
        opponent_column=ask.opponent_column,
        images=images,
    )


def _complete(compute: Compute, call: GenerateCall) -> list[list[tuple[Tensor, Completion]]]:
    """Return prompt tokens and completion of each sample from the dataset, reference, teacher or a mixture."""
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
    """Return the row's own answer as a completion; its log-probs under the policy are unknown."""
    if row.columns.get("completion") is None:
        raise DataError(
            f"'{compute.card.name}' learns from the data's own answers, and a row has no column 'completion'. "
            "Name it with --columns completion=NAME."
        )
    prompt, ids, text = encode_answer(row.columns, compute.tokenizer, compute.settings.data, compute.stop_ids)
    unknown = torch.full((len(ids),), math.nan)
    return prompt, Completion(ids, unknown, bool(len(ids)) and int(ids[-1]) in compute.stop_ids, text)


def give_rewards(compute: Compute, rewards: list[Reward], items: list[Rollout]) -> int:
    """Score every item, each rank its share; return how many got no score from any reward.

    Rewards of an episode's environment are added. Without any reward every item gets 0: the method learns from
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
        columns["images"] = [[image.picture() for image in items[i].pictures] for i in mine]
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
    """Add the environment's rewards to each rollout's reward: 0 for an episode that ended before it gave any.

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
    """Pair each served rollout with one of its prompt's opponents, in turn."""
    pairs = []
    for group in dict.fromkeys(items[i].group for i in served):
        theirs = [i for i in opponents if items[i].group == group]
        own = [i for i in served if items[i].group == group]
        pairs += [(one, theirs[place % len(theirs)]) for place, one in enumerate(own) if theirs]
    return pairs


def fold_auxiliary_rollouts(items: list[Rollout], prefer: Callable[[list[int], list[int]], Tensor]) -> list[Rollout]:
    """Remove auxiliary rollouts (baselines, opponents) and write their reward or win rate as columns of the others.

    ``prefer`` returns the probability ``(P,)`` that the items at its first places are better than those at its second.
    """
    lenders = [i for i, item in enumerate(items) if item.baseline_column or item.opponent_column]
    served = [i for i in range(len(items)) if i not in set(lenders)]
    for lender in lenders:
        own = [i for i in served if items[i].group == items[lender].group]
        if name := items[lender].baseline_column:
            for i in own:
                items[i].columns[name] = items[lender].reward
    for name in {items[lender].opponent_column for lender in lenders} - {""}:
        pairs = _opponents(items, served, [i for i in lenders if items[i].opponent_column == name])
        chances = prefer([i for i, _ in pairs], [opponent for _, opponent in pairs])  # (P,)
        for (i, _), chance in zip(pairs, chances.tolist(), strict=True):
            items[i].columns[name] = chance
    return [items[i] for i in served]


def reward_metrics(rewards: Tensor, rollouts: Rollouts) -> dict[str, float]:
    """Return the metrics of a batch of rollouts; without scores only their lengths."""
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
    """Return the metrics of episodes: turns, tool calls and failed ones, tokens read, why they ended."""
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
