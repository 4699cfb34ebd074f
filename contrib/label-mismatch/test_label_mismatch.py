import posttrain_method_label_mismatch as mismatch
import pytest


def test_by_hand(loss_of):
    """Twelve nats over one mismatched token and three retained ones: 3 each."""
    found = loss_of({"alternative_tok": [[-6.0]], "retain_tok": [[-1.0, -2.0, -3.0]]})
    assert found.loss == pytest.approx(3)
    assert found.gradients["retain_tok"][0] == pytest.approx([-0.25] * 3)


def test_answers_belong_to_other_prompts_and_stay_the_same():
    rows = [{"row": n, "forget": {"prompt": f"p{n}", "completion": f"a{n}"}, "retain": "r"} for n in range(6)]
    made = mismatch.posttrain_rows(rows)
    assert made == mismatch.posttrain_rows(rows)
    assert all(row["alternative"]["prompt"][1:] != row["alternative"]["completion"][1:] for row in made)
