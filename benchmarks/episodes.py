"""Measure episodes with slow tools against a loop that waits for all of them, and what reading again costs.

``python -m benchmarks.episodes`` writes ``results/episodes.json``:

- "slow tools": 32 episodes at a time, six turns each, on a tiny model; a tool takes a log-normal time between 0.01 and
  2 seconds (median 0.1). "one batch" is 32 episodes alone: nothing can be faster than its slowest episode, which the
  limit tells. "refilled" is 128 episodes, where another begins as one ends; the loop that waits plays four batches.
- "prefix": six turns of a Llama of 25 million parameters whose tools answer at once, with the keys and values of
  earlier turns and without; prompts of 384 tokens, tool answers of 48, turns of 13 at the mean.

All sides sample with the same generator and the same seeds, and their tokens are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from posttrain.contract.generation import Sampling
from posttrain.data.tokens.turns import Turns
from posttrain.environments.environment import Environment, Observation
from posttrain.generation.local.hf import HfGenerator
from posttrain.rollouts.episodes import EpisodePlayer
from posttrain.rollouts.seeds import seed_of
from posttrain.settings import DataSettings
from posttrain.settings.episodes import EpisodeSettings
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parent
EPISODES, TURNS = 32, 6
ROW = {"prompt": "abc"}


def seconds(seed: int) -> list[float]:
    """How long the tool of the episode takes at each turn."""
    dice = random.Random(seed)
    return [min(2.0, max(0.01, dice.lognormvariate(-2.3, 1.2))) for _ in range(TURNS)]


class Waits(Environment):
    """Takes its time, which the seed decides, and says one word."""

    words = "h"

    def reset(self, row: dict[str, Any], seed: int) -> None:
        """Begin."""
        self.left = self.times(seed)

    def times(self, seed: int) -> list[float]:
        """Seconds of each turn."""
        return seconds(seed)

    def step(self, message: dict[str, Any]) -> Observation:
        """Wait, and answer."""
        time.sleep(self.left.pop(0))
        return Observation(self.words, 0.0, done=not self.left)


class Talks(Waits):
    """Answers at once, with 48 tokens."""

    words = "h" * 48

    def times(self, seed: int) -> list[float]:
        """No time at all."""
        return [0.0] * TURNS


class Setting:
    """A generator whose turns end by themselves, and what plays episodes with it."""

    def __init__(self, model: Any, prompt: int, ends: int, environment: type[Waits], **limits: Any):
        """Prompts of ``prompt`` tokens; every ``ends``-th token of the vocabulary ends a turn."""
        self.tokenizer = tiny_tokenizer()
        model.config.max_position_embeddings = 4096
        self.stops = set(range(0, model.config.vocab_size, ends))
        self.model, self.limits = model, limits
        self.generator = HfGenerator(model, self.tokenizer, self.stops, EPISODES, **limits)
        self.turns = Turns(self.tokenizer, DataSettings(), self.stops, None)
        self.prompt = torch.arange(prompt) % 7 + 4
        self.sampling, self.environment = Sampling(40 * ends), environment

    def play(self, seeds: list[int]) -> tuple[list[list[int]], float]:
        """The tokens that were sampled, and seconds."""
        settings = EpisodeSettings(max_turns=TURNS, tool_workers=EPISODES, episodes_at_once=EPISODES)
        player = EpisodePlayer(self.environment, self.turns, settings, None)
        begun = time.monotonic()
        (found,) = player.play(self.generator, [self.prompt], [ROW], self.sampling, [seeds])
        taken = time.monotonic() - begun
        return [one.ids[one.episode.sampled].tolist() for one in found if one.episode is not None], taken

    def wait_for_all(self, seeds: list[int]) -> tuple[list[list[int]], float]:
        """The same by the loop that waits: sample for all, let all environments answer, sample again."""
        begun, found = time.monotonic(), []
        for first in range(0, len(seeds), EPISODES):
            found += self._batch(seeds[first : first + EPISODES])
        return found, time.monotonic() - begun

    def _batch(self, seeds: list[int]) -> list[list[int]]:
        games = [self.environment() for _ in seeds]
        for game, seed in zip(games, seeds, strict=True):
            game.reset(ROW, seed)
        contexts, said = [self.prompt for _ in seeds], [self.prompt[:0] for _ in seeds]
        with ThreadPoolExecutor(len(seeds)) as pool:
            for turn in range(TURNS):
                own = [[seed_of(seed, "turn", turn) if turn else seed] for seed in seeds]
                found = [one for (one,) in self.generator.generate(contexts, self.sampling, own)]
                answers = pool.map(lambda game, one: game.step({"content": one.text}), games, found)
                for place, (one, answer) in enumerate(zip(found, answers, strict=True)):
                    contexts[place] = torch.cat(
                        [contexts[place], one.ids, self.turns.text([{"content": str(answer.messages)}]).ids]
                    )
                    said[place] = torch.cat([said[place], one.ids])
        return [ids.tolist() for ids in said]


def slow_tools(repeats: int) -> dict[str, Any]:
    """Seconds with slow tools: one batch alone, and with others that wait for a place."""
    setting = Setting(tiny_model(), 3, 4, Waits)
    found: dict[str, Any] = {}
    for name, count in (("one batch", EPISODES), ("refilled", 4 * EPISODES)):
        ours = waiting = limit = 0.0
        for repeat in range(repeats):
            seeds = [1000 * repeat + place for place in range(count)]
            own, taken = setting.play(seeds)
            theirs, waited = setting.wait_for_all(seeds)
            assert own == theirs, "both sides sample the same tokens"
            ours, waiting = ours + taken, waiting + waited
            limit += max(sum(seconds(seed)) for seed in seeds)
        found[name] = {"seconds": round(ours, 2), "waiting for all": round(waiting, 2)}
        found[name]["ratio"] = round(waiting / ours, 2)
        if count == EPISODES:
            found[name]["limit"] = round(waiting / limit, 2)
    return found


def prefix(repeats: int) -> dict[str, Any]:
    """Seconds of turns that go on from what was read, and of turns that read everything."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8}
    config = LlamaConfig(**sizes, num_key_value_heads=4, vocab_size=tiny_model().config.vocab_size, eos_token_id=1)
    model = LlamaForCausalLM(config).eval()
    sides = {
        name: Setting(model, 384, 16, Talks, prefix_tokens=tokens) for name, tokens in (("kept", None), ("again", 0))
    }
    times = dict.fromkeys(sides, 0.0)
    for repeat in range(repeats):
        seeds = [1000 * repeat + place for place in range(EPISODES // 2)]
        made = {}
        for name, side in sides.items():
            made[name], taken = side.play(seeds)
            times[name] += taken
        assert made["kept"] == made["again"], "both sides sample the same tokens"
    return {name: round(value, 2) for name, value in times.items()} | {
        "ratio": round(times["again"] / times["kept"], 2),
        "parameters": sum(one.numel() for one in model.parameters()),
    }


def main() -> None:
    """Take the figures, print them and write them down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "episodes.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {"cores": os.cpu_count(), "slow tools": slow_tools(options.repeats), "prefix": prefix(options.repeats)}
    print(json.dumps(found, indent=2))
    options.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
