"""Traps of online methods that show in whole runs of GRPO and RLOO; each test names its id."""

import json
import os

import pytest
import torch
from posttrain.contract.views import Step
from posttrain.errors import RunFailed
from posttrain.training.step import optimiser_step

ONLINE = ("grpo", "rloo")


def constant(prompts, completions, **columns):
    return [0.5] * len(completions)


def sometimes_none(prompts, completions, **columns):
    return [None if place == 0 else float(len(text)) for place, text in enumerate(completions)]


def prompt_of(example) -> tuple[int, ...]:
    (row,) = example.sequences["completion"]
    return tuple(row.ids[: int(row.trained.int().argmax())].tolist())


def gradients(run, examples) -> dict[str, torch.Tensor]:
    optimiser_step(run.compute, examples, Step(0, 1))
    return {name: p.grad.clone() for name, p in run.policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("method", ONLINE)
def test_g8_the_ratio_is_one_at_the_first_update_and_not_at_the_second(train, method):
    """G8: log-probs of the sampling policy are kept, not taken anew after an update."""
    run = train(method, steps=4, updates_per_rollout=2, schedule="constant")
    ratios = [line["ratio"] for line in run.metrics]
    assert ratios[0::2] == pytest.approx([1, 1], abs=1e-4)
    assert all(abs(ratio - 1) > 1e-3 for ratio in ratios[1::2])


@pytest.mark.parametrize("method", ONLINE)
def test_g8_g4_the_ratio_is_one_at_another_temperature(train, method):
    """G4: the trainer's log-probs are taken at the sampler's temperature, so what it sampled is on-policy."""
    run = train(method, steps=1, temperature=0.5)
    assert run.metrics[0]["ratio"] == pytest.approx(1, abs=1e-5)
    assert run.metrics[0]["sampler_difference"] < 1e-5


@pytest.mark.parametrize("method", ONLINE)
def test_g10_equal_rewards_move_nothing(train, method):
    """G10: no spread, no gradient; the epsilon under the standard deviation must not make one out of rounding."""
    run = train(method, steps=1, reward=constant, beta=0.0)
    assert run.metrics[0]["grad_norm"] == 0
    assert run.metrics[0]["loss"] == 0


@pytest.mark.parametrize("method", ONLINE)
def test_g9_a_missing_reward_spares_the_others(train, method):
    """G9: one completion without a reward; the others of its group still learn, and nothing becomes NaN."""
    run = train(method, steps=1, reward=sometimes_none)
    assert 0 < run.metrics[0]["grad_norm"] < float("inf")


@pytest.mark.parametrize("method", ONLINE)
def test_g6_groups_lie_together_whatever_the_cut(train, method):
    """G6: each step's rollouts are whole groups of one prompt each, and no prompt twice."""
    for cut in ({}, {"micro_batch_size": 3}, {"batch_size": 2}):
        run = train(method, steps=1, learning_rate=0.0, **cut)
        run.progress.step = 0
        examples = run.source.examples(0)
        prompts = [prompt_of(example) for example in examples]
        groups = [prompts[start : start + 4] for start in range(0, len(prompts), 4)]
        assert len(examples) == 4 * run.settings.length.batch_size
        assert all(len(set(group)) == 1 for group in groups)
        assert len({group[0] for group in groups}) == len(groups)


@pytest.mark.parametrize("method", ONLINE)
def test_s4_a_minibatch_is_an_optimiser_step_of_its_own(train, method):
    """S4: over the same rollouts, the gradients of two half steps average to that of the whole, not to half of it."""
    precision = {"dtype": "float64", "torch_dtype": torch.float64}
    options = {"max_grad_norm": 0.0} | precision  # clipping would scale each half by itself
    run = train(method, steps=2, learning_rate=0.0, batch_size=4, minibatches_per_rollout=2, **options)
    run.progress.step = 0
    parts = [run.source.examples(number) for number in (0, 1)]
    assert [len(part) for part in parts] == [8, 8]
    assert {id(example) for example in parts[0]}.isdisjoint(id(example) for example in parts[1])
    halves = [gradients(run, part) for part in parts]
    whole = gradients(run, [*parts[0], *parts[1]])
    assert max(float(gradient.abs().max()) for gradient in whole.values()) > 1e-3
    for name, gradient in whole.items():
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, gradient, rtol=1e-6, atol=1e-9)


def leaves_things_changed(prompts, completions, **columns):
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(len(completions[0]))
    os.chdir("/")
    return [text.count("a") / 8 for text in completions]


def clean(prompts, completions, **columns):
    return [text.count("a") / 8 for text in completions]


def test_what_a_reward_changes_in_the_process_does_not_reach_the_run(train):
    """The same metrics and weights, in every bit, as with a reward that only scores."""
    runs = [
        train("grpo", steps=2, reward=reward, lora_dropout=0.3, lora=True) for reward in (clean, leaves_things_changed)
    ]
    lines = [[(line["loss"], line["grad_norm"], line["reward"]) for line in run.metrics] for run in runs]
    assert lines[0] == lines[1]
    weights = [list(run.policy.parameters()) for run in runs]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_a_reward_that_ends_the_process_fails_the_run(train, tmp_path):
    def ends(completions, **columns):
        os._exit(0)

    with pytest.raises(RunFailed, match=r"^Reward 'ends' called os\._exit\(0\) at .* on completion 0 \("):
        train("grpo", steps=1, reward=ends)
    events = [json.loads(line) for line in (tmp_path / "run-0" / "events.jsonl").read_text().splitlines()]
    (failed,) = [event for event in events if event["code"] == "failed"]
    assert "called os._exit(0)" in failed["message"]
