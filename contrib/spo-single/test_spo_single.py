from functools import partial
from types import SimpleNamespace

import pytest
import torch
from posttrain.contract.views import Sequence
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH, advantages_of, method_beside

METHOD = method_beside(__file__)
advantages = partial(advantages_of, METHOD)
D = torch.float64


def visit(rewards, prompts, state, **options):
    found, columns = advantages(
        rewards, list(range(len(rewards))), options=options, state=state, prompts=prompts, columns={}
    )
    return found.tolist(), columns["success_rate"].tolist()


def test_advantages_by_hand():
    """New prompts have v = 1/2: 1/2 and -1/2 are 0.707107 sample deviations off their mean. Equal ones are worth 0."""
    found, rates = visit([1, 0], ["a", "b"], {})
    assert (found, rates) == (pytest.approx([0.707107, -0.707107], abs=1e-6), [0.5, 0.5])
    assert visit([1, 1], ["a", "b"], {})[0] == [0, 0]
    assert visit([1, 0], ["a", "b"], {}, std="population")[0] == pytest.approx([1, -1], abs=1e-6)


def test_a_tracker_with_a_constant_memory():
    """From 0.5 and 0.5 with rho 0.875: 1.4375 and 0.4375 after a success."""
    state = {}
    visit([1, 0], ["a", "b"], state, memory="constant")
    assert state["trackers"]["a"] == [1.4375, 0.4375]
    assert visit([1, 0], ["a", "b"], state, memory="constant")[1] == pytest.approx([1.4375 / 1.875, 0.4375 / 1.875])


def test_a_baseline_of_the_data():
    """0.75 as if of 8 completions."""
    rows = {"prompts": ["a"], "columns": {"prompt_baseline": [0.75]}}
    state = {}
    assert advantages([1], [0], state=state, **rows)[1]["success_rate"].tolist() == [0.75]
    assert state["trackers"]["a"] == [6, 2]


def test_the_divergence_since_the_last_visit():
    """First visit: D 0 and rho 0.96. Then the log-probs moved by 0.01 on average: rho 2^(-1/6) = 0.890899."""
    state, sequence = {}, Sequence(torch.arange(3), torch.tensor([False, True, True]))
    example = SimpleNamespace(columns={"group": 0.0}, sequences={"completion": [sequence]})
    for logps, alpha in (([-1.0, -2.0], 0.48 + 1), ([-1.005, -2.015], (0.48 + 1) * 0.890899 + 1)):
        visit([1], ["a"], state)
        models = SimpleNamespace(logps=lambda wanted, model, now=logps: [torch.tensor(now, dtype=D)] * len(wanted))
        assert METHOD.annotate(examples=[example], models=models, config=METHOD.config({}), state=state) == {}
        assert state["trackers"]["a"][0] == pytest.approx(alpha, abs=1e-5)
    assert state["past"]["a"][2].tolist() == [-1.005, -2.015]
    assert "waiting" not in state


def test_loss_is_clipped_and_averaged_over_tokens(completion_loss):
    """Ratios 1, 3/2 and 1/2 under advantages 2 and -1: -2, -2 * 1.2 and 0.8."""
    assert completion_loss(NEW, WORTH, MASK, OLD, success_rate=WORTH)[0].tolist() == pytest.approx([-2, -2.4, 0.8])
