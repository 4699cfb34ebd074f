"""Measure what slow tools cost: episodes that go on as they are answered, against waiting for all of them at each turn.

``python -m benchmarks.episodes``: 32 episodes of six turns on a tiny model; a tool takes a log-normal time between 0.01
and 2 seconds (median 0.1). Both sides sample with the same generator and have the same seeds, so that their tokens are
equal.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from posttrain.contract.generation import Completion, Sampling
from posttrain.data.tokens.turns import Turns
from posttrain.environments.environment import Environment, Observation
from posttrain.generation.local.hf import HfGenerator
from posttrain.rollouts.episodes import EpisodePlayer
from posttrain.rollouts.seeds import seed_of
from posttrain.settings import DataSettings
from posttrain.settings.episodes import EpisodeSettings
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

EPISODES, TURNS, TOKENS = 32, 6, 4


class Waits(Environment):
    """Takes its time, which the seed decides, and says one word."""

    def __init__(self) -> None:
        self.dice, self.turns = random.Random(0), 0

    def reset(self, row: dict[str, Any], seed: int) -> None:
        """Begin."""
        self.dice, self.turns = random.Random(seed), 0

    def step(self, message: dict[str, Any]) -> Observation:
        """Wait, and answer."""
        time.sleep(min(2.0, max(0.01, self.dice.lognormvariate(-2.3, 1.2))))
        self.turns += 1
        return Observation("h", 0.0, done=self.turns == TURNS)


class Steady(HfGenerator):
    """A generator whose turns all end by themselves, so that every episode has all of its turns."""

    def generate(self, *arguments: Any, **keywords: Any) -> list[list[Completion]]:
        """Sample, and call every answer finished."""
        found = super().generate(*arguments, **keywords)
        for completion in (one for own in found for one in own):
            completion.finished = True
        return found


def at_once(
    generator: Any, prompt: torch.Tensor, row: dict[str, Any], seeds: list[int], turns: Turns
) -> list[list[int]]:
    """The loop that waits: sample for all, let all environments answer, sample again."""
    games = [Waits() for _ in seeds]
    for game, seed in zip(games, seeds, strict=True):
        game.reset(row, seed)
    contexts, said = [prompt for _ in seeds], [torch.zeros(0, dtype=torch.long) for _ in seeds]
    with ThreadPoolExecutor(len(seeds)) as pool:
        for turn in range(TURNS):
            own = [[seed_of(seed, "turn", turn) if turn else seed] for seed in seeds]
            found = [one for (one,) in generator.generate(contexts, Sampling(TOKENS), own)]
            answers = list(
                pool.map(lambda pair: pair[0].step({"content": pair[1].text}), zip(games, found, strict=True))
            )
            for place, (one, answer) in enumerate(zip(found, answers, strict=True)):
                between = turns.text(str(answer.messages)) if turn + 1 < TURNS else one.ids[:0]
                contexts[place] = torch.cat([contexts[place], one.ids, between])
                said[place] = torch.cat([said[place], one.ids])
    return [ids.tolist() for ids in said]


def main() -> None:
    """Print both times and their ratio as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer, model = tiny_tokenizer(), tiny_model()
    generator = Steady(model, tokenizer, {tokenizer.eos_token_id}, EPISODES)
    turns = Turns(tokenizer, DataSettings(), {tokenizer.eos_token_id}, None)
    player = EpisodePlayer(Waits, turns, EpisodeSettings(max_turns=TURNS, tool_workers=EPISODES), None)
    prompt, row = torch.tensor([4, 5, 6]), {"prompt": "abc"}
    times: dict[str, list[float]] = {"ours": [], "at_once": []}
    for repeat in range(options.repeats):
        seeds = [1000 * repeat + place for place in range(EPISODES)]
        begun = time.monotonic()
        (found,) = player.play(generator, [prompt], [row], Sampling(TOKENS), [seeds])
        times["ours"].append(time.monotonic() - begun)
        begun = time.monotonic()
        said = at_once(generator, prompt, row, seeds, turns)
        times["at_once"].append(time.monotonic() - begun)
        own = [one.ids[one.episode.sampled].tolist() for one in found if one.episode is not None]
        assert own == said, "both sides sample the same tokens"
    ratio = sum(times["at_once"]) / sum(times["ours"])
    print(
        json.dumps(
            {name: [round(value, 2) for value in own] for name, own in times.items()} | {"ratio": round(ratio, 2)}
        )
    )


if __name__ == "__main__":
    main()
