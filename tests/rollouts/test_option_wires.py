"""Options of rollouts come to where they are used."""

import asyncio
import math

import pytest
from posttrain import api
from posttrain.errors import RunFailed
from posttrain.generation import backends
from posttrain.generation.local.hf import HfGenerator

JUDGE = """
from pathlib import Path

def longer(prompts, firsts, seconds):
    with Path(__file__).with_name("asked").open("a") as file:
        file.write("x" * len(prompts))
    return [0.5 if len(a) == len(b) else float(len(a) > len(b)) for a, b in zip(firsts, seconds)]
"""


def test_a_reward_that_takes_longer_than_reward_timeout_ends_the_run(train):
    async def slow(completions):
        await asyncio.sleep(5)
        return [0.0 for _ in completions]

    with pytest.raises(RunFailed, match=r"0\.2 s.*--reward-timeout SECONDS"):
        train("grpo", steps=1, reward=slow, reward_timeout=0.2)


def test_options_of_the_judge_reach_it(train, tmp_path):
    """Both orders are asked of each pair, and one alone where an option says so."""
    asked = {}
    for name, options in (("both", None), ("one", {"both_orders": "false"})):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "judge.py").write_text(JUDGE, encoding="utf-8")
        train("online-dpo", steps=1, reward=None, judge=f"{folder}/judge.py:longer", judge_options=options)
        asked[name] = len((folder / "asked").read_text())
    assert asked["both"] == 2 * asked["one"] > 0


def test_limits_of_the_sampler_reach_it_and_change_no_sample(train, monkeypatch):
    given = []

    def recorded(model, tokenizer, stop_ids, *limits, prefix_tokens):
        given.append((*limits, prefix_tokens))
        return HfGenerator(model, tokenizer, stop_ids, *limits, prefix_tokens=prefix_tokens)

    monkeypatch.setattr(backends, "HfGenerator", recorded)
    plain = train("grpo", steps=1)
    waves = train("grpo", steps=1, generation_batch_size=3, generation_cache_tokens=40, generation_prefix_tokens=7)
    assert given == [(64, None, None), (3, 40, 7)]
    assert (waves.path / "samples.jsonl").read_text() == (plain.path / "samples.jsonl").read_text()


def test_greedy_rollouts_are_learnt_at_temperature_one(options):
    greedy = api.train("grpo", **options(temperature=0.0, steps=2))
    assert all(math.isfinite(line["loss"]) for line in greedy.metrics)
    assert greedy.metrics[0]["sampler_difference"] < 1e-5
