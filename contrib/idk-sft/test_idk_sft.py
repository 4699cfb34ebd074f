import posttrain_method_idk_sft as idk
import pytest


def test_by_hand(loss_of):
    """Nine nats over one token of a refusal and two retained ones: 3 each, every token a third of the gradient."""
    found = loss_of({"alternative_tok": [[-4.0]], "retain_tok": [[-2.0, -3.0]]})
    assert found.loss == pytest.approx(3)
    assert found.gradients["alternative_tok"][0] == pytest.approx([-1 / 3])
    assert found.gradients["retain_tok"][0] == pytest.approx([-1 / 3, -1 / 3])


def test_rows_get_refusals_of_their_own_form():
    talk = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
    own = {"prompt": "a", "completion": " b"}
    rows = [
        {"row": 0, "forget": {"prompt": "Q:", "completion": " A"}, "retain": "r"},
        {"row": 1, "forget": talk, "retain": "r"},
        {"row": 2, "forget": {"prompt": "Q:", "completion": " A"}, "retain": "r", "alternative": own},
    ]
    first, second, third = (row["alternative"] for row in idk.posttrain_rows(rows))
    assert first == {"prompt": "Q:", "completion": " I do not know."}
    assert second["prompt"] == talk[:1]
    assert second["completion"][0]["role"] == "assistant"
    assert third == own
