"""Options of rollouts come to where they are used."""

import asyncio
import math

import pytest
from posttrain import api
from posttrain.errors import ModelError, RunFailed, SettingsError
from posttrain.generation import backends
from posttrain.generation.local.hf import HfGenerator
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

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

    def recorded(model, tokenizer, stop_ids, *limits, prefix_tokens, **rest):
        given.append((*limits, prefix_tokens))
        return HfGenerator(model, tokenizer, stop_ids, *limits, prefix_tokens=prefix_tokens, **rest)

    monkeypatch.setattr(backends, "HfGenerator", recorded)
    plain = train("grpo", steps=1)
    waves = train("grpo", steps=1, generation_batch_size=3, generation_cache_tokens=40, generation_prefix_tokens=7)
    assert given == [(64, None, None), (3, 40, 7)]
    assert (waves.path / "samples.jsonl").read_text() == (plain.path / "samples.jsonl").read_text()


def test_speculation_changes_no_sample_of_a_run(train, options, tmp_path):
    """With a draft model, in a process of its own, every log-prob is still that of the trainer."""
    plain, guessed = train("grpo", steps=2), train("grpo", steps=2, speculate="ngram", speculate_tokens=3)
    assert (guessed.path / "samples.jsonl").read_text() == (plain.path / "samples.jsonl").read_text()
    assert any("accepted_share" in line for line in guessed.metrics)
    folder = tmp_path / "draft"
    tiny_model(layers=1).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    apart = {"generation_process": True, "speculate": "draft", "draft_model": str(folder)}
    run = api.train("grpo", **options(steps=2, **apart))
    assert all(line["sampler_difference"] < 1e-5 and 0 <= line["accepted_share"] <= 1 for line in run.metrics)


def test_draft_models_that_cannot_serve(options, tmp_path):
    folder = tmp_path / "draft"
    tiny_model(layers=3).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    with pytest.raises(ModelError, match="a draft has to be smaller"):
        api.train("grpo", **options(speculate="draft", draft_model=str(folder)))
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="has another tokeniser than the model"):
        api.train("grpo", **options(speculate="draft", draft_model=str(folder)))
    with pytest.raises(SettingsError, match="A draft model needs both"):
        api.train("grpo", **options(speculate="draft"))


def test_greedy_rollouts_are_learnt_at_temperature_one(options):
    greedy = api.train("grpo", **options(temperature=0.0, steps=2))
    assert all(math.isfinite(line["loss"]) for line in greedy.metrics)
    assert greedy.metrics[0]["sampler_difference"] < 1e-5
