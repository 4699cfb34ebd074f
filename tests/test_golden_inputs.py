"""Inputs of golden values: names of a file's entry become roles, models, rollouts and statistics."""

import math

import pytest
import torch
from posttrain_testkit.goldens.inputs import columns_of, given_statistics, read_inputs, views_of
from posttrain_testkit.goldens.rollouts import rollouts_of


def test_names_become_roles_and_models():
    raw = {
        "forget_logp": [-10.0, -8.0],
        "forget_ref_logp": [-9.0, -8.5],
        "forget_len": [4, 5],
        "retain_tok": [[-1.0], [-2.0, -3.0]],
        "weight": [1.0, 0.5],
        "temperature": 2.0,
    }
    inputs = read_inputs(raw, reward_head=False)
    policy, reference = views_of(inputs, "policy", {}), views_of(inputs, "reference", {})
    assert policy.forget.sum.tolist() == [-10, -8]
    assert policy.forget.lengths.tolist() == [4, 5]
    assert policy.retain.logps.tolist() == [[-1, 0], [-2, -3]]
    assert reference.forget.mean.tolist() == pytest.approx([-2.25, -1.7])
    columns = columns_of(inputs)
    assert columns["weight"].tolist() == [1, 0.5]
    assert columns["temperature"].tolist() == [2, 2]


def test_groups_become_rollouts():
    raw = {
        "group": [0, 0],
        "rewards": [1, 0],
        "lengths": [2, 1],
        "logp_new": [[-1, -2], [-3]],
        "logp_old": [[-1.5, -2], [-2]],
        "logp_rollout": [[-1.6, -2], [-2.1]],
        "entropy": [[0.5, 0.6], [0.7]],
    }
    inputs = read_inputs(raw, reward_head=False)
    rollouts = rollouts_of(inputs)
    assert rollouts.old_logps.tolist() == [[-1.5, -2], [-2, 0]]
    assert rollouts.sampled_logps.tolist() == [[-1.6, -2], [-2.1, 0]]
    assert rollouts.mask.tolist() == [[True, True], [True, False]]
    assert rollouts.columns["entropy"].tolist() == [[0.5, 0.6], [0.7, 0]]
    assert inputs.leaves["logp_new"].requires_grad
    assert not rollouts.old_logps.requires_grad


def test_pairs_ratios_and_scored_answers():
    pairs = [{"policy_chosen_logp": -1.0, "chosen_len": 2}, {"policy_chosen_logp": -3.0, "chosen_len": 1}]
    policy = views_of(read_inputs({"pairs": pairs}, reward_head=False), "policy", {})
    assert policy.chosen.logps.tolist() == [[-0.5, -0.5], [-3, 0]]

    ratios = read_inputs({"logratios": [1.0, -0.5], "policy_logp": [-10.0, -12.0]}, reward_head=False)
    assert views_of(ratios, "policy", {}).completion.sum.tolist() == [-10, -12]
    assert views_of(ratios, "reference", {}).completion.sum.tolist() == [-11, -11.5]

    answers = {"logp_new": [[-3, -4], [-2, -5]], "lengths": [[1, 2], [3, 1]], "scores": [[1, 0], [0, 1]]}
    policy = views_of(read_inputs(answers, reward_head=False), "policy", {})
    assert policy.chosen.sum.tolist() == pytest.approx([-3, -5])
    assert policy.rejected.lengths.tolist() == [2, 3]


def test_scores_only_under_a_reward_head():
    raw = {"reward_chosen": [1.0, 2.0], "reward_rejected": [0.0, 3.0]}
    policy = views_of(read_inputs(raw, reward_head=True), "policy", {})
    assert policy.chosen.score.tolist() == [1, 2]
    assert torch.equal(policy.rejected.score, torch.tensor([0.0, 3.0], dtype=torch.float64))
    assert views_of(read_inputs(raw, reward_head=False), "policy", {}) is None


def test_a_head_for_steps_has_one_score_for_two_classes():
    """Logits (bad, good) of one row of steps, or of several; labels stand beside them, and every place is an end."""
    for logits, labels in (
        ([[0.2, 1.0], [0.5, -0.3]], [1, 0]),
        ([[[0.2, 1.0], [0.5, -0.3]], [[1.0, 1.5]]], [[1, 0], [1]]),
    ):
        inputs = read_inputs({"step_logits": logits, "step_label": labels}, False, step_head=True)
        view = views_of(inputs, "policy", given_statistics(inputs)).completion
        columns = columns_of(inputs)
        assert view.scores[0].tolist() == pytest.approx([0.8, -0.8])
        assert columns["step_end"].dtype == torch.bool
        assert torch.equal(columns["step_end"], view.mask)
        assert columns["step_label"][0].tolist() == [1, 0]
    assert view.mask.tolist() == [[True, True], [True, False]]


def test_quantities_now_and_before_the_update():
    raw = {"logp_new": [[-1.0, -2.0], [-0.5]], "values_new": [[0.5, 0.6], [0.4]], "values_old": [[0.1, 0.2], [0.3]]}
    inputs = read_inputs({**raw, "group": [0, 0]}, reward_head=False)
    assert given_statistics(inputs)["completion"]["values"].tolist() == [[0.5, 0.6], [0.4, 0.0]]
    assert rollouts_of(inputs).old("values").tolist() == [[0.1, 0.2], [0.3, 0.0]]
    assert columns_of(inputs)["old_values"].tolist() == [[0.1, 0.2], [0.3, 0.0]]


def test_logits_of_a_role_single_tokens_and_numbers_of_a_role():
    """Logits (ln 3, 0) of "forget"; a mean loss and a probability as one token each; a statistic for every token."""
    raw = {
        "policy_forget_logits": [[math.log(3), 0.0], [0.0, 0.0]],
        "labels": [0, 1],
        "retain_nll_token_mean": 1.5,
        "alternative_prob": [0.5, 0.25],
        "forget_kl": 0.25,
    }
    inputs = read_inputs(raw, reward_head=False)
    policy = views_of(inputs, "policy", {})
    assert policy.forget.logps[0].tolist() == pytest.approx([math.log(0.75), math.log(0.5)])
    assert policy.retain.logps.tolist() == [[-1.5]]
    assert policy.alternative.sum.tolist() == pytest.approx([math.log(0.5), math.log(0.25)])
    assert given_statistics(inputs)["forget"]["kl"].tolist() == [[0.25, 0.25]]


def test_a_figure_beside_a_roles_own_log_probs_stays_a_column():
    inputs = read_inputs({"policy_chosen_logp": [-3.0], "chosen_len": 2, "chosen_nll_token_mean": 1.5}, False)
    assert views_of(inputs, "policy", {}).chosen.sum.item() == -3
    assert columns_of(inputs)["chosen_nll_token_mean"].tolist() == [1.5]
