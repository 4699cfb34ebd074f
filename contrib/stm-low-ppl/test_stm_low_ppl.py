"""Selective token masking against numbers worked by hand and the shared golden values."""

import math
from pathlib import Path

import pytest
from posttrain.testing.goldens import evaluate
from posttrain.testing.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / ".." / "shared" / "methods" / "goldens-offline.json"


def test_by_hand():
    """Perplexities 2, 4 and 1 under the base model, tau 3: the second token is left out."""
    inputs = {"policy_tok": [[-1.0, -9.0], [-3.0]], "ref_tok": [[math.log(0.5), math.log(0.25)], [0.0]]}
    found = loss_of(HERE, inputs, tau=3.0)
    assert found.loss == pytest.approx(2)
    assert found.gradients["policy_tok"][0] == pytest.approx([-0.5, 0])


@pytest.mark.skipif(not GOLDENS.exists(), reason="the shared golden values are not here")
def test_goldens():
    results = evaluate(GOLDENS, "stm-low-ppl", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
