"""PKPO against numbers worked by hand and the golden values."""

import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from posttrain.methods import load
from posttrain.views import Batch, PerToken, Step, View, Views
from posttrain_testkit.goldens.compare import evaluate

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "online.json"
METHOD = load(str(HERE))
D = torch.float64


def matrix(*rows):
    return torch.tensor(rows, dtype=D)


def advantages(rewards, group, mask=None, options=None, state=None, **columns):
    group = torch.tensor(group)
    mask = torch.ones(len(group), 2, dtype=torch.bool) if mask is None else mask
    rollouts = SimpleNamespace(group=group, mask=mask, lengths=mask.sum(-1), **columns)
    config, state = METHOD.config(options or {}), {} if state is None else state
    rewards = torch.tensor(rewards, dtype=D)
    return METHOD.worth(rewards=rewards, rollouts=rollouts, config=config, state=state)


def loss_of(new, worth, mask, old=None, options=None, reference=None, **columns):
    """The unreduced loss, and the metrics; ``old`` are the log-probs of the policy that sampled."""
    columns |= {"advantages": worth, "old_logps": new.detach() if old is None else old}
    loss, metrics = METHOD.loss(
        batch=Batch(len(new), columns),
        policy=Views(completion=View(new, mask, entropy=torch.ones_like(new))),
        reference=None if reference is None else Views(completion=View(reference, mask)),
        config=METHOD.config(options or {}),
        step=Step(0, 1),
    )
    return loss.values[loss.mask] if isinstance(loss, PerToken) else loss, metrics


#: Ratios 1 and 3/2 for a good completion, 1/2 for a bad one of one token.
MASK = torch.tensor([[True, True], [True, False]])
OLD = matrix([-1.0, -2.0], [-0.5, 0.0])
NEW = OLD + matrix([1.0, 1.5], [0.5, 1.0]).log()
WORTH = torch.tensor([2.0, -1.0], dtype=D)


def brute(values, k, minus_one):
    """Every set of k."""
    found = []
    for i in range(len(values)):
        sets = [one for one in itertools.combinations(range(len(values)), k) if i in one]
        gains = [max(values[j] for j in one) - minus_one * max(values[j] for j in one if j != i) for one in sets]
        found.append(sum(gains) / math.comb(len(values), k))
    return found


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("baseline", ["none", "loo_minus_one"])
def test_new_rewards_equal_all_sets(k, baseline):
    values = [0.3, -1.0, 2.0, 0.3, 1.1]
    found, columns = advantages(values, [0] * 5, options={"k": k, "baseline": baseline})
    assert found.tolist() == pytest.approx(brute(values, k, baseline == "loo_minus_one"))
    sets = list(itertools.combinations(values, k))
    assert columns["best_of_k"].tolist() == pytest.approx([sum(map(max, sets)) / len(sets)] * 5)


def test_baselines():
    """Equal rewards teach nothing; k 1 is RLOO divided by n: (1 - 0) / 2 and so on; lone answers have no baseline."""
    assert advantages([0.1] * 4, [0] * 4, options={"k": 2})[0].tolist() == pytest.approx([0] * 4, abs=1e-12)
    for baseline in ("loo", "loo_minus_one"):
        found, _ = advantages([1, 0], [0, 0], options={"k": 1, "baseline": baseline})
        assert found.tolist() == pytest.approx([0.5, -0.5])
    assert advantages([1, 0], [0, 1], options={"k": 1})[0].tolist() == [0, 0]


def test_the_mean_is_over_prompts():
    """Two answers of one prompt: the mean over examples of twice each is the sum over the prompt."""
    loss, _ = loss_of(NEW, WORTH, MASK, answers=torch.tensor([2.0, 2.0], dtype=D), best_of_k=WORTH)
    assert loss.tolist() == pytest.approx([12 - 4 * math.log(1.5), 2 * (-0.5 - math.log(2))])


def test_goldens():
    (result,) = evaluate(GOLDENS, "pkpo", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]
