import posttrain_method_return_conditioned_sft as conditioned
import pytest


def test_by_hand(loss_of):
    assert loss_of({"policy_tok": [[-1.0, -2.0], [-6.0]], "score": [1.0, 2.0]}).loss == pytest.approx(3)


def test_prompts_are_told_their_bin():
    """Ten scores in five bins of two each."""
    rows = [{"row": n, "prompt": "p", "completion": "c", "score": n / 10} for n in range(10)]
    made = conditioned.posttrain_rows(rows, conditioned.Config())
    assert [row["bin"] for row in made] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert made[0]["prompt"] == "[return 1] p"
    assert [row["best"] for row in made].count(True) == 2
