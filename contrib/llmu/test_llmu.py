import posttrain_method_llmu as llmu
import pytest


def test_by_hand(loss_of):
    """2 * -3 + 0.5 * 2 + 4 * 0.25 = -4."""
    inputs = {
        "forget_tok": [[-2.0, -4.0]],
        "forget_ref_tok": [[-1.0, -1.0]],
        "alternative_tok": [[-2.0]],
        "retain_tok": [[-1.0]],
        "retain_kl": 0.25,
    }
    found = loss_of(inputs, weights=(2.0, 0.5, 4.0))
    assert found.loss == pytest.approx(-4)
    assert found.gradients["forget_tok"][0] == pytest.approx([1, 1])


def test_every_prompt_gets_the_answer_of_another_row():
    rows = [{"row": n, "forget": {"prompt": f"p{n}", "completion": f"a{n}"}, "retain": "r"} for n in range(5)]
    made = [row["alternative"] for row in llmu.posttrain_rows(rows)]
    assert [one["prompt"] for one in made] == ["p0", "p1", "p2", "p3", "p4"]
    assert sorted(one["completion"] for one in made) == ["a0", "a1", "a2", "a3", "a4"]
    assert all(one["completion"] != f"a{n}" for n, one in enumerate(made))
