"""Fine-tuning with an anchor against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    """Policy (3/4, 1/4), reference (1/2, 1/2): KL 0.143841; the token is the first: -ln(3/4) = 0.287682."""
    inputs = {"logits": [[math.log(3.0), 0.0]], "ref_logits": [[0.0, 0.0]], "labels": [0]}
    found = loss_of(HERE, inputs, kl_weight=2.0)
    assert found.loss == pytest.approx(0.287682 + 2 * 0.143841, abs=1e-6)
    # likelihood: policy less one-hot; divergence: policy less reference
    assert found.gradients["logits"][0][0] == pytest.approx([-0.25 + 0.5, 0.25 - 0.5])


def test_goldens():
    results = evaluate(GOLDENS, "sft-kl", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
