"""Clip-Cov against numbers worked by hand and the golden values."""

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


def examples_of(new, old, worth, groups):
    """Examples with these log-probs now and under the sampler, advantages and groups, and the models that say so."""
    new, old = ([torch.tensor(row, dtype=D) for row in rows] for rows in (new, old))
    sequences = [SimpleNamespace(per_token={"old_logps": row}) for row in old]
    columns = [{"advantages": a, "group": float(g)} for a, g in zip(worth, groups, strict=True)]
    examples = [
        SimpleNamespace(sequences={"completion": [one]}, columns=row)
        for one, row in zip(sequences, columns, strict=True)
    ]
    return examples, SimpleNamespace(logps=lambda sequences, model: new)


NEW_ROWS, OLD_ROWS = [[-1.0, -3.0], [-3.0]], [[-1.0, -3.0], [-3.0]]


def annotated(new=NEW_ROWS, old=OLD_ROWS, worth=(2.0, -2.0), state=None, **options):
    examples, models = examples_of(new, old, worth, [0, 0])
    config, state = METHOD.config(options), {} if state is None else state
    return METHOD.annotate(examples=examples, models=models, config=config, state=state)


def test_covariance_by_hand():
    """Advantages 2, 2, -2 with the mean 2/3; log-probs -1, -3, -3 with the mean -7/3."""
    found = annotated(lowest_covariance=0.1)
    covariance = [4 / 3 * 4 / 3, 4 / 3 * -2 / 3, -8 / 3 * -2 / 3]
    assert torch.cat(found["covariance"]).tolist() == pytest.approx(covariance)
    assert sum(float(row.sum()) for row in found["left_out"]) == 1  # one of the two that are positive
    assert found["left_out"][0][1] == 0


def test_what_is_clipped_anyway_is_no_candidate():
    """The first token has risen by 1.5 already, so only the bad one is left."""
    found = annotated(old=[[-2.5, -3.0], [-3.0]], lowest_covariance=0.1, draw="first")
    assert [row.tolist() for row in found["left_out"]] == [[0, 0], [1]]
    assert annotated(lowest_covariance=0.1, draw="first")["left_out"][0].tolist() == [1, 0]
    assert torch.cat(annotated(lowest_covariance=3.0)["left_out"]).sum() == 0


def test_draws_repeat_with_the_state():
    state = {}
    first = [torch.cat(annotated(state=state, lowest_covariance=0.1)["left_out"]).tolist() for _ in range(8)]
    again = [torch.cat(annotated(state={"draws": n}, lowest_covariance=0.1)["left_out"]).tolist() for n in range(8)]
    assert first == again
    assert len(set(map(tuple, first))) == 2  # either of the two candidates


def test_what_is_left_out_costs_nothing():
    columns = {"left_out": matrix([1.0, 0.0], [0.0, 0.0]), "covariance": OLD}
    assert loss_of(NEW, WORTH, MASK, OLD, **columns)[0].tolist() == pytest.approx([0, -2.4, 0.8])


def test_advantages_by_hand():
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards are worth nothing, also a lone one's."""
    found, _ = advantages([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.577349, -1.154699, 0.577349, 0, 0, 0], abs=1e-6)


def test_goldens():
    (result,) = evaluate(GOLDENS, "clip-cov", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]
