import math

import pytest


def test_by_hand(loss_of):
    """Scores ln 3, ln 2, 0: the first with probability 3/6, then the second with 2/3."""
    found = loss_of({"rewards": [math.log(3), math.log(2), 0.0]})
    assert found.loss == pytest.approx(math.log(2) + math.log(1.5))
    assert loss_of({"rewards": [math.log(3), math.log(2), 0.0]}, per_choice=True).loss == pytest.approx(
        (math.log(2) + math.log(1.5)) / 2
    )


def test_two_answers_are_bradley_terry(loss_of):
    found = loss_of({"rewards": [math.log(3), 0.0]})
    assert found.loss == pytest.approx(math.log(4 / 3))
    assert found.metrics["accuracy"].tolist() == [1]
