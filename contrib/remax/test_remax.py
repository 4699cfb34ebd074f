"""ReMax against numbers worked by hand, the golden values, and what the policy's greedy answers really earn."""

import math
from random import Random
from types import SimpleNamespace

import pytest
import torch
from posttrain import SampleRequest, api
from posttrain.errors import SettingsError
from posttrain_testkit.by_hand import MASK, NEW, OLD, call_loss, method_beside, tensor
from posttrain_testkit.tiny import count_of_a, tiny_model, tiny_tokenizer

METHOD = method_beside(__file__)


def worked_out(rewards, greedy, log_ratio=None, **options):
    mask = torch.tensor([[True, True], [True, False]])
    old = torch.zeros(2, 2, dtype=torch.float64)
    rollouts = SimpleNamespace(
        mask=mask,
        columns={} if greedy is None else {"greedy_reward": greedy},
        old_logps=old,
        reference_logps=old - (log_ratio if log_ratio is not None else 0.0),
    )
    config = METHOD.config({"beta": 0.0, **options})
    return METHOD.advantages(rewards=tensor(*rewards), rollouts=rollouts, config=config, state={})


def loss_of(new, worth, **options):
    columns = {"advantages": worth, "above_greedy": tensor(2, -1), "greedy_reward": tensor(0.5, 0.25)}
    return call_loss(METHOD, new, OLD - 0.5, columns | {"old_logps": OLD}, mask=MASK, **{"beta": 0.0, **options})


def test_one_greedy_answer_is_asked_for_beside_the_samples():
    prompts = [{"prompt": "a"}, {"prompt": "b"}]
    plans = METHOD.plan_rollouts(prompts=prompts, group_size=3, config=METHOD.config({}), state={}, random=Random(0))
    assert plans == [[SampleRequest(3), SampleRequest(1, greedy=True, baseline_column="greedy_reward")]] * 2


def test_worth_is_the_reward_above_the_greedy_one():
    found = worked_out([1.0, 0.5], [0.25, 0.75])
    assert found["advantages"].tolist() == [0.75, -0.25]
    assert found["greedy_reward"].tolist() == [0.25, 0.75]


def test_tokens_pay_for_the_divergence_to_come():
    """Charges 0.2 and 0.4 at beta 0.5: the first token pays 0.3, the second 0.2; behind the end nothing is worth."""
    ratios = tensor([0.2, 0.4], [-0.6, 9.0])
    found = worked_out([1.0, 0.5], [0.0, 0.0], ratios, beta=0.5)["advantages"]
    assert found.flatten().tolist() == pytest.approx([0.7, 0.8, 0.8, 0.0])


@pytest.mark.parametrize("greedy", [None, [None, 0.25], [math.nan, 0.25]])
def test_without_a_greedy_reward_a_completion_teaches_nothing(greedy):
    """G9: a reward that is None belongs to its own prompt alone."""
    found = worked_out([1.0, 0.5], greedy)
    assert found["advantages"].tolist() == [0.0, 0.0 if greedy is None else 0.25]


def test_sum_over_tokens_of_log_probabilities():
    """NEW is ln 1 - 1, ln 1.5 - 2 and ln 0.5 - 0.5. Good: -2 * (-1 - 1.594535) = 5.189070; bad: 1 * -1.193147."""
    loss, metrics = loss_of(NEW, tensor(2, -1))
    assert loss.tolist() == pytest.approx([5.189070, -1.193147], abs=1e-6)
    assert metrics["greedy_reward"].tolist() == [0.5, 0.25]
    assert metrics["advantage_size"].tolist() == [2, 1]
    assert "ratio" not in metrics
    assert "kl" not in metrics


def test_one_advantage_a_token():
    loss, _ = loss_of(NEW, tensor([2.0, 1.0], [-1.0, 7.0]))
    assert loss.tolist() == pytest.approx([2 + 1.594535, -1.193147], abs=1e-6)


def test_clipped_ratio_where_batches_serve_several_updates():
    """Good: -(2 * 1 + 2 * 1.2), as 1.5 is clipped. Bad: ratio 1/2 is clipped to 0.8."""
    loss, metrics = loss_of(NEW, tensor(2, -1), epsilon=0.2)
    assert loss.tolist() == pytest.approx([-4.4, 0.8])
    assert metrics["clip_high"].values[MASK].tolist() == [0, 1, 0]
    assert metrics["clip_low"].values[MASK].tolist() == [0, 0, 1]


def test_both_losses_have_the_same_gradient_on_fresh_rollouts():
    """Where the policy is the one that sampled, the ratio's gradient is that of the log-probability: -A each."""
    for options in ({}, {"epsilon": 0.2}):
        new = OLD.clone().requires_grad_()
        loss_of(new, tensor(2, -1), **options)[0].sum().backward()
        assert new.grad.tolist() == [[-2, -2], [1, 0]]


@pytest.mark.parametrize("options", [{}, {"epsilon": 0.3}, {"beta": 0.5}])
def test_gradient_equals_finite_differences(options):
    def total(new):
        return loss_of(new * MASK, tensor(2, -1), **options)[0].sum()

    assert torch.autograd.gradcheck(total, (NEW.clone().requires_grad_(),))


def test_an_epsilon_of_zero_is_refused():
    with pytest.raises(SettingsError, match=r"epsilon is 0\.0, expected a number above 0, or none"):
        METHOD.config({"epsilon": 0})


def test_the_baseline_is_what_greedy_answers_earn(tmp_path):
    """The mean baseline of the first step over all prompts is the evaluation's greedy reward before it."""
    rows = [{"prompt": prompt} for prompt in ("ab", "abc", "a", "dcba")]
    run = api.train(
        METHOD,
        model=tiny_model(),
        tokenizer=tiny_tokenizer(),
        data=rows,
        eval_data=rows,
        reward=count_of_a,
        batch_size=4,
        steps=1,
        max_new_tokens=6,
        temperature=2.0,
        output=str(tmp_path / "run"),
        progress="quiet",
        cache="off",
        device="cpu",
    )
    assert run.metrics[0]["greedy_reward"] == pytest.approx(run.evaluations[0]["eval_reward"])
    assert run.metrics[0]["advantage"] == pytest.approx(run.metrics[0]["reward"] - run.metrics[0]["greedy_reward"])
