from types import SimpleNamespace

import posttrain_method_kto as kto
import pytest
import torch
from posttrain.contract.views import Batch, Example, Sequence, View, Views


def loss_of(logratios, labels, mismatched, **options):
    policy = torch.tensor(logratios, dtype=torch.float64)[:, None].requires_grad_()
    mask = torch.ones(len(labels), 1, dtype=torch.bool)
    columns = {"label": torch.tensor(labels), "mismatch_kl": torch.tensor(mismatched, dtype=torch.float64)}
    values, metrics = kto.posttrain_loss(
        Batch(len(labels), columns),
        Views(completion=View(policy, mask)),
        Views(completion=View(torch.zeros_like(policy).detach(), mask)),
        kto.Config(**options),
    )
    return values, metrics, policy


def test_by_hand():
    """rho = 1 and -0.5, z = 0.5, beta = 0.1: good 1 - sigmoid(0.05) = 0.487503, bad sigmoid(-0.1) = 0.475021."""
    values, metrics, _ = loss_of([1.0, -0.5], [True, False], [0.5, 0.5])
    assert values.tolist() == pytest.approx([0.487503, 0.475021], abs=1e-6)
    assert metrics["reward_good"][0].item() == pytest.approx(0.1)
    assert metrics["kl"].tolist() == [0.5, 0.5]


def test_a_negative_baseline_counts_as_zero():
    """z = max(0, -3) = 0: a bad answer with rho = 0 costs exactly one half."""
    values, _, _ = loss_of([0.0], [False], [-3.0])
    assert values.item() == 0.5


def test_gradient_is_that_of_finite_differences_and_none_flows_through_the_baseline():
    logratios, labels = [1.0, -0.5, 0.3], [True, False, False]
    values, _, leaf = loss_of(logratios, labels, [0.2, 0.2, 0.2])
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    for place in range(3):
        moved = [list(logratios), list(logratios)]
        moved[0][place] += 1e-6
        moved[1][place] -= 1e-6
        up, down = (loss_of(m, labels, [0.2, 0.2, 0.2])[0].sum().item() for m in moved)
        assert gradient[place, 0].item() == pytest.approx((up - down) / 2e-6, abs=1e-8)


def rows(*texts):
    """Rows of a two-token prompt and an answer, as (prompt, answer) token lists."""
    return [
        Example({"completion": [Sequence(torch.tensor(p + a), torch.arange(len(p + a)) >= len(p))]}, {"label": True})
        for p, a in texts
    ]


def test_each_prompt_meets_the_next_prompts_answer():
    """P1: with lengths as log-ratios the mean is that of the neighbours' answers; the last one meets the first."""
    asked = []

    def logps(sequences, model):
        asked.append([s.ids.tolist() for s in sequences])
        value = 1.0 if model == "policy" else 0.0
        return [torch.full((s.count,), value) for s in sequences]

    examples = rows(([1, 2], [3]), ([4, 5], [6, 7]), ([8, 9], [10, 11, 12]))
    found = kto.posttrain_annotate(examples, SimpleNamespace(logps=logps))
    assert asked[0] == [[1, 2, 6, 7], [4, 5, 10, 11, 12], [8, 9, 3]]
    assert found["mismatch_kl"].tolist() == [2.0, 2.0, 2.0]


def test_an_answer_is_never_its_own_mismatch():
    """P1: one example, or equal rows, leave nothing to compare with: the baseline is 0."""

    def logps(sequences, model):
        raise AssertionError("nothing may be computed")

    for examples in (rows(([1, 2], [3])), rows(([1, 2], [3]), ([1, 2], [3]))):
        found = kto.posttrain_annotate(examples, SimpleNamespace(logps=logps))
        assert found["mismatch_kl"].tolist() == [0.0] * len(examples)
