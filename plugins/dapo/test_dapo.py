import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from posttrain import api
from posttrain.contract.views import PerToken
from posttrain.errors import SettingsError
from posttrain.settings import Settings
from posttrain_testkit.by_hand import MASK, NEW, OLD, call_loss, method_beside, tensor
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "online.json"
METHOD = method_beside(__file__)


def chosen(rewards, group, **options):
    rollouts = SimpleNamespace(group=torch.tensor(group), items=list(range(len(rewards))))
    config = METHOD.config(options)
    return METHOD.select(rollouts=rollouts, rewards=tensor(*rewards), config=config, state={})


def worked_out(rewards, group, lengths, **options):
    rollouts = SimpleNamespace(group=torch.tensor(group), lengths=torch.tensor(lengths))
    config = METHOD.config(options)
    found = METHOD.advantages(rewards=tensor(*rewards), rollouts=rollouts, config=config, state={})
    return found["advantages"].tolist(), found["overlong_punishment"].tolist()


def loss_of(new, **options):
    columns = {"advantages": tensor(2, -1), "overlong_punishment": tensor(0, -0.5), "old_logps": OLD}
    return call_loss(METHOD, new, columns=columns, mask=MASK, **options)


def test_groups_of_equal_rewards_are_left_out():
    """G10: of 0.1 three times, {0, 1} and a lone completion only {0, 1} is learnt from, whatever the order."""
    found = chosen([0.1, 0.0, 0.1, 5.0, 1.0, 0.1], [4, 7, 4, 9, 7, 4])
    assert (found.rollouts, found.refill) == ([1, 4], True)


def test_without_dynamic_sampling_every_group_stays():
    found = chosen([1.0, 1.0], [0, 0], dynamic_sampling=False)
    assert (found.rollouts, found.refill) == (None, False)


def test_punishment_grows_over_the_buffer():
    """Longest 20, buffer 4: nothing up to 16, then a quarter a token, 1 at 20 and beyond (G22: completions alone)."""
    _, found = worked_out([0.0] * 6, [0] * 6, [3, 16, 17, 18, 20, 25], longest=20, overlong_buffer=4)
    assert found == [0, 0, -0.25, -0.5, -1, -1]


def test_lengths_follow_the_run():
    """The paper's proportion: a buffer of a fifth of max-new-tokens. 95 of 100 is 15 of the 20 into it."""
    config = METHOD.config({}, Settings(max_new_tokens=100))
    rollouts = SimpleNamespace(group=torch.tensor([0, 0]), lengths=torch.tensor([80, 95]))
    found = METHOD.advantages(rewards=tensor(1, 1), rollouts=rollouts, config=config, state={})
    assert found["overlong_punishment"].tolist() == [0, -0.75]
    assert METHOD.config({"longest": 7}, Settings(max_new_tokens=100)).longest == 7


@pytest.mark.parametrize("options", [{"overlong_buffer": 0, "longest": 4}, {"longest": 4}])
def test_no_buffer_is_no_punishment(options):
    """A fifth of 4 tokens is none."""
    assert worked_out([1.0, 1.0], [0, 0], [4, 99], **options) == ([0, 0], [0, 0])


def test_advantages_are_those_of_the_punished_rewards():
    """{1, 1 - 0.5, 0}: mean 0.5, deviation sqrt((0.25 + 0 + 0.25) / 2) = 0.5."""
    found, _ = worked_out([1, 1, 0], [0, 0, 0], [5, 18, 5], longest=20, overlong_buffer=4, advantage_epsilon=0.0)
    assert found == pytest.approx([1, 0, -1])


def test_an_unscored_completion_leaves_the_others_alone():
    """G9."""
    found, _ = worked_out([1.0, math.nan, 0.0], [0, 0, 0], [1, 1, 1], advantage_epsilon=0.0)
    assert found == pytest.approx([0.707107, 0, -0.707107], abs=1e-6)


def test_clipped_further_up_than_down():
    """Good: -2 * 1 and -2 * 1.28, as 1.5 is clipped. Bad: 1/2 is clipped to 0.8. One value a token (G3)."""
    loss, metrics = loss_of(NEW)
    assert isinstance(loss, PerToken)
    assert loss.mask is MASK
    assert loss.values[MASK].tolist() == pytest.approx([-2, -2.56, 0.8])
    assert metrics["clip_high"].values[MASK].tolist() == [0, 1, 0]
    assert metrics["clip_low"].values[MASK].tolist() == [0, 0, 1]
    assert metrics["overlong_punishment"].tolist() == [0, -0.5]
    loss, _ = loss_of(NEW, epsilon=0.6, epsilon_high=0.6)
    assert loss.values[MASK].tolist() == pytest.approx([-2, -3, 0.5])


def test_first_update_is_the_policy_gradient():
    new = OLD.clone().requires_grad_()
    loss_of(new)[0].values[MASK].sum().backward()
    assert new.grad.tolist() == [[-2, -2], [1, 0]]


def test_gradient_equals_finite_differences():
    def total(new):
        return loss_of(new * MASK)[0].values[MASK].sum()

    assert torch.autograd.gradcheck(total, (NEW.clone().requires_grad_(),))


def test_a_negative_buffer_is_refused():
    with pytest.raises(SettingsError, match="overlong_buffer is -1, expected a number of tokens from 0"):
        METHOD.config({"overlong_buffer": -1})


def train(folder, reward, **options):
    return api.train(
        METHOD,
        model=tiny_model(),
        tokenizer=tiny_tokenizer(),
        data=[{"prompt": "ab", "dull": place % 2 == 0} for place in range(8)],
        reward=reward,
        shuffle=False,
        output=str(folder),
        **{"batch_size": 4, "group_size": 2, "steps": 2, "max_new_tokens": 4, "progress": "quiet"} | options,
        cache="off",
        device="cpu",
    )


def test_a_step_is_filled_up_with_other_prompts(tmp_path):
    """Every second prompt is dull: each step needs two batches of prompts, and learns from half of what it sampled."""

    def alternating(prompts, completions, dull):
        return [1.0 if flat else float(place % 2) for place, flat in enumerate(dull)]

    run = train(tmp_path / "run", alternating)
    for line in run.metrics:
        assert (line["generation_rounds"], line["rollouts_learnt"]) == (2, 0.5)
        assert line["advantage_size"] == pytest.approx(0.707107, abs=1e-4)
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert {abs(sample["advantage"]) > 0.7 for sample in samples} == {True}


def test_without_any_signal_the_rounds_end(tmp_path):
    """The last batch is taken as it is, and moves nothing."""

    def flat(prompts, completions):
        return [0.5] * len(completions)

    run = train(tmp_path / "run", flat, steps=1, generation_rounds=3)
    assert (run.metrics[0]["generation_rounds"], run.metrics[0]["loss"], run.metrics[0]["grad_norm"]) == (3, 0, 0)


def test_the_kept_groups_are_those_of_the_goldens():
    entries = json.loads(GOLDENS.read_text())
    inputs = entries["_shared"]["policy_gradient"]
    kept = chosen(inputs["rewards"], inputs["group"]).rollouts
    groups = [any(inputs["group"][row] == group for row in kept) for group in sorted(set(inputs["group"]))]
    assert groups == entries["dapo"]["dynamic_sampling_keep_group"]
