import copy
from types import SimpleNamespace

import pytest
import torch
from posttrain.contract.views import Example, Sequence, View, Views
from posttrain_testkit.by_hand import call_loss, method_beside

METHOD = method_beside(__file__)
D = torch.float64


def loss_of(logratios, labels, delta, beta=0.1):
    """Log-ratios (B,), each as one token whose reference log-prob is -2."""
    mask = torch.ones(len(labels), 1, dtype=torch.bool)
    reference = torch.full((len(labels), 1), -2.0, dtype=D)
    columns = {"label": torch.tensor(labels), "delta": torch.full((len(labels),), delta, dtype=D)}
    return call_loss(
        METHOD,
        Views(completion=View(logratios[:, None] + reference, mask)),
        Views(completion=View(reference, mask)),
        columns,
        beta=beta,
    )


def ratios(*values):
    return torch.tensor(values, dtype=D)


def delta_after(logratios, state, beta=0.1):
    """The column that a step of these log-ratios gets; every row has two trained tokens that share its log-ratio."""
    rows = [Sequence(torch.tensor([1, 2, 3]), torch.tensor([False, True, True])) for _ in logratios]
    values = dict(zip(map(id, rows), logratios, strict=True))

    def logps(sequences, model):
        moved = model == "policy"
        return [torch.full((2,), -1.0, dtype=D) + moved * values[id(one)] / 2 for one in sequences]

    examples = [Example({"completion": [row]}, {"label": True}) for row in rows]
    config = METHOD.config({"beta": beta})
    return METHOD.annotate(examples=examples, models=SimpleNamespace(logps=logps), config=config, state=state)["delta"]


def test_by_hand():
    """Rewards 0.1 and -0.05, delta 0.02. Good: ln(1 + e^-0.08) = 0.653947; bad: ln(1 + e^-0.07) = 0.658760."""
    loss, metrics = loss_of(ratios(1, -0.5), [True, False], 0.02)
    assert loss.tolist() == pytest.approx([0.653947, 0.658760], abs=1e-6)
    assert metrics["reward_good"][0].item() == pytest.approx(0.1)
    assert metrics["reward_bad"][1].item() == pytest.approx(-0.05)
    assert metrics["reward_good"].isnan().tolist() == metrics["logps_good"].isnan().tolist() == [False, True]
    assert metrics["logps_bad"][1].item() == pytest.approx(-2.5)
    assert metrics["accuracy"].tolist() == [1, 1]


def test_both_sides_of_the_shift():
    """P3: a reward of 0.1 is right for a good answer under a shift of 0.05 and wrong under one of 0.2."""
    right, wrong = (loss_of(ratios(1), [True], delta) for delta in (0.05, 0.2))
    assert right[0].item() < 0.693147 < wrong[0].item()
    assert (right[1]["accuracy"].item(), wrong[1]["accuracy"].item()) == (1, 0)


def test_the_mean_runs_over_all_examples_seen():
    """Rewards 0.1 and -0.05: 0.025. Then 0.2, 0.3 and 0.1: 0.65 over five is 0.13, the step's own included."""
    state = {}
    assert delta_after(ratios(1, -0.5), state).tolist() == pytest.approx([0.025] * 2)
    assert delta_after(ratios(2, 3, 1), state).tolist() == pytest.approx([0.13] * 3)
    assert state == {"seen": 5, "delta": pytest.approx(0.13)}


@pytest.mark.parametrize("cut", [1, 3, 6])
def test_the_mean_does_not_depend_on_how_steps_are_cut(cut):
    everything, state = ratios(0.3, -2, 5, 0.7, -0.1, 4, 1), {}
    delta_after(everything[:cut], state)
    assert delta_after(everything[cut:], state)[0].item() == pytest.approx(0.1 * everything.mean().item())


def test_a_kept_state_goes_on_where_it_was():
    """What a checkpoint holds is all that the mean needs."""
    state = {}
    delta_after(ratios(1, -0.5), state)
    kept = copy.deepcopy(state)
    assert torch.equal(delta_after(ratios(2), state), delta_after(ratios(2), kept))
    assert all(type(value) in (int, float) for value in kept.values())


def test_a_common_shift_of_all_rewards_changes_nothing():
    """The policy may move away from the reference as a whole: delta moves along."""
    values = ratios(0.4, -1.2, 2.0)
    losses = []
    for moved in (values, values + 7):
        delta = delta_after(moved, {})[0].item()
        losses.append(loss_of(moved, [True, False, True], delta)[0].tolist())
    assert losses[0] == pytest.approx(losses[1])


def test_gradient_equals_finite_differences_and_none_flows_through_the_shift():
    """At delta = reward the slope is half of beta: -0.05 for a good answer, 0.05 for a bad one."""
    leaf = ratios(1, 1).requires_grad_()
    loss_of(leaf, [True, False], 0.1)[0].sum().backward()
    assert leaf.grad.tolist() == pytest.approx([-0.05, 0.05])
    point = ratios(0.3, -0.7, 20).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss_of(x, [True, False, False], 0.4)[0].sum(), (point,))


def test_far_rewards_stay_finite():
    leaf = ratios(1e5, -1e5).requires_grad_()
    loss, _ = loss_of(leaf, [False, True], 0.0)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([1e4, 1e4])
    assert leaf.grad.tolist() == pytest.approx([0.1, -0.1])
