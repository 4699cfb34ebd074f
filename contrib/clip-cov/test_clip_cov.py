import pytest
import torch
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH, examples_of, method_beside, tensor

METHOD = method_beside(__file__)


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


def test_what_is_left_out_costs_nothing(completion_loss):
    columns = {"left_out": tensor([1.0, 0.0], [0.0, 0.0]), "covariance": OLD}
    assert completion_loss(NEW, WORTH, MASK, OLD, **columns)[0].tolist() == pytest.approx([0, -2.4, 0.8])


def test_advantages_by_hand(advantages_of):
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards are worth nothing, also a lone one's."""
    found, _ = advantages_of([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.577349, -1.154699, 0.577349, 0, 0, 0], abs=1e-6)
