import posttrain_method_steerlm as steerlm
import pytest


def test_by_hand(loss_of):
    assert loss_of({"policy_tok": [[-1.0, -2.0], [-6.0]], "score": [1.0, 2.0]}).loss == pytest.approx(3)


def test_prompts_state_the_attributes():
    rows = [
        {"row": 0, "prompt": "p", "completion": "c", "score": 1.0, "attributes": {"helpfulness": 4, "verbosity": 2.0}},
        {"row": 1, "prompt": [{"role": "user", "content": "p"}], "completion": [], "score": 0.25},
    ]
    first, second = (row["prompt"] for row in steerlm.posttrain_rows(rows, steerlm.Config()))
    assert first == "p\n[helpfulness:4,verbosity:2]\n"
    assert second == [{"role": "user", "content": "p\n[score:0.25]\n"}]
