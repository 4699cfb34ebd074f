"""Options of a run that must change what they say, and nothing else."""

import json

import pytest
import torch
from posttrain import api
from posttrain.errors import DataError, SettingsError
from posttrain_testkit.tiny import count_of_a, tiny_model, tiny_tokenizer

from .conftest import ROWS


def losses(run) -> list[float]:
    return [line["loss"] for line in run.metrics]


@pytest.mark.parametrize("option", [{"gradient_checkpointing": True}, {"head_chunk_tokens": 1}, {"packing": False}])
def test_what_only_saves_memory_changes_no_number(train, option):
    plain = train("sft", dtype="float64", torch_dtype=torch.float64)
    other = train("sft", dtype="float64", torch_dtype=torch.float64, **option)
    assert losses(other) == pytest.approx(losses(plain), rel=1e-9)
    assert losses(plain)[-1] < losses(plain)[0]


def test_autocast_is_close_and_not_the_same(train):
    plain, cast = train("sft"), train("sft", autocast=True)
    assert losses(cast) != losses(plain)
    assert losses(cast) == pytest.approx(losses(plain), rel=2e-2)
    assert all(p.dtype == torch.float32 for p in cast.model.parameters())


@pytest.mark.parametrize("name", ["adamw", "sgd", "rmsprop", "adagrad", "adafactor", "adamw_torch", "ademamix"])
def test_optimizers_by_the_names_people_know(train, name):
    run = train("sft", optimizer=name, steps=4, schedule="constant")
    assert losses(run)[-1] < losses(run)[0]


def test_an_unknown_optimizer_has_a_neighbour(train):
    with pytest.raises(SettingsError, match=r"No optimizer is called 'adamv'\. Did you mean 'adamw'"):
        train("sft", optimizer="adamv")


def test_schedules_by_hand(train):
    """Warm-up of 2 in 6 steps: 0, 1/2, then 4 steps down a line, a half cosine, or level."""
    expected = {
        "linear": [0, 0.5, 1, 0.75, 0.5, 0.25],
        "cosine": [0, 0.5, 1, 0.853553, 0.5, 0.146447],
        "constant": [0, 0.5, 1, 1, 1, 1],
    }
    for name, factors in expected.items():
        run = train("sft", schedule=name, warmup_steps=2, steps=6, learning_rate=0.01)
        assert [line["learning_rate"] / 0.01 for line in run.metrics] == pytest.approx(factors, abs=1e-6)


def test_clipping_bounds_the_step_and_the_log_shows_the_norm_before(train):
    free = train("sft", optimizer="sgd", max_grad_norm=0.0, steps=1, learning_rate=1.0)
    bound = train("sft", optimizer="sgd", max_grad_norm=0.01, steps=1, learning_rate=1.0)
    assert bound.metrics[0]["grad_norm"] == pytest.approx(free.metrics[0]["grad_norm"], rel=1e-6)
    start = tiny_model()
    pairs = zip(bound.model.parameters(), start.parameters(), strict=True)
    moved = sum(float((p - q).detach().pow(2).sum()) for p, q in pairs) ** 0.5
    assert moved == pytest.approx(0.01, rel=1e-3)


def test_streaming_needs_steps_and_goes_on_where_it_stopped(train, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS["sft"]))
    with pytest.raises(SettingsError, match="Streaming does not know how many rows there are"):
        train("sft", data=str(file), streaming=True, steps=None)
    options = {"data": str(file), "streaming": True, "steps": 6, "batch_size": 3, "save_every": 2, "save_total": 9}
    whole = train("sft", **options)
    expected = losses(whole)
    for step in (4, 6):
        (whole.path / "checkpoints" / f"step-{step}").rename(tmp_path / f"away-{step}")
    again = api.resume(whole.path, model=tiny_model(), tokenizer=tiny_tokenizer())
    assert losses(again) == expected


def test_several_updates_per_rollout_begin_on_policy_and_leave_it(train):
    """G8: the first update's ratio is 1, the second pass's is not."""
    run = train("grpo", updates_per_rollout=2, steps=4, learning_rate=0.05, max_grad_norm=0.0)
    ratios = [line["ratio"] for line in run.metrics]
    assert ratios[0] == pytest.approx(1.0, abs=1e-5)
    assert ratios[2] == pytest.approx(1.0, abs=1e-5)
    assert abs(ratios[1] - 1) > 1e-4


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_log_probs_are_taken_at_the_sampling_temperature(train, temperature):
    """G4: trainer and sampler agree, and the ratio of the first update is 1, at any temperature."""
    run = train("grpo", temperature=temperature, updates_per_rollout=2, steps=1, learning_rate=0.0)
    assert run.metrics[0]["sampler_difference"] < 1e-4
    assert run.metrics[0]["ratio"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("packing", [True, False])
def test_under_autocast_the_sampler_computes_as_the_trainer_does(train, packing):
    """G4: bfloat16 on one side alone shows as a difference of some thousandths."""
    run = train("grpo", autocast=True, packing=packing, steps=1, learning_rate=0.0)
    assert run.metrics[0]["sampler_difference"] < 1e-4


def test_rewards_of_none_are_left_out_and_counted(train):
    """G9."""

    def sometimes(completions, **_):
        return [None if index % 4 == 0 else float(len(text)) for index, text in enumerate(completions)]

    run = train("grpo", reward=sometimes, steps=1)
    assert run.metrics[0]["rollouts_dropped"] == 8
    assert len(run.source.buffer) == 24


def test_truncated_completions_can_be_left_out(train):
    """M11: nothing is learnt from them, and a batch of nothing else gives a loss of 0, not NaN."""
    run = train("grpo", mask_truncated=True, max_new_tokens=1, steps=1, reward=lambda completions, **_: [1.0, 0.0] * 16)
    cut = [e for e in run.source.buffer if e.trained_tokens == 0]
    assert len(cut) >= 24
    assert run.metrics[0]["loss"] == pytest.approx(0.0, abs=0.5)
    assert run.metrics[0]["grad_norm"] == run.metrics[0]["grad_norm"]


def test_samples_are_written_with_their_rewards(train):
    run = train("rloo", samples_per_step=3, steps=2)
    samples = [json.loads(line) for line in (run.path / "samples.jsonl").read_text().splitlines()]
    assert [s["step"] for s in samples] == [1, 1, 1, 2, 2, 2]
    for sample in samples:
        assert sample["reward"] == count_of_a([], [sample["completion"]])[0]
        assert sample["prompt"] in [row["prompt"] for row in ROWS["rloo"]]


def test_data_that_ends_too_early_is_said(train):
    with pytest.raises(DataError, match="is missing"):
        train("sft", data=[{"prompt": "ab"}])


def test_a_reward_is_asked_for(train):
    with pytest.raises(SettingsError, match=r"learns from rewards and none was given\. Name one: --reward gsm8k"):
        train("grpo", reward=[])
