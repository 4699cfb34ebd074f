import pytest
from posttrain_testkit.by_hand import MASK, WORTH, tensor

#: Probabilities 0.5 and 0.01 double, 0.6 falls to 0.3.
THEN = tensor([0.5, 0.01], [0.6, 1.0]).log()
NOW = tensor([1.0, 0.02], [0.3, 1.0]).log()


def test_a_rare_token_may_double_and_a_likely_one_may_not(completion_loss):
    loss, metrics = completion_loss(NOW, WORTH, MASK, NOW, sampled_logps=THEN)
    assert loss.tolist() == pytest.approx([0, -4, 0])
    assert metrics["left_out_high"].values[MASK].tolist() == [1, 0, 0]
    assert metrics["left_out_low"].values[MASK].tolist() == [0, 0, 1]
    assert metrics["apart"].values[MASK].tolist() == pytest.approx([0.5, 0.01, 0.3])


def test_what_pulls_back_is_kept(completion_loss):
    loss, _ = completion_loss(NOW, -WORTH, MASK, NOW, sampled_logps=THEN)
    assert loss.tolist() == pytest.approx([4, 4, -0.5])


def test_divergence_by_hand(completion_loss):
    """From 0.6 to 0.3: 0.6 ln 2 + 0.4 ln(0.4 / 0.7) = 0.192046 lies below 0.2."""
    loss, metrics = completion_loss(NOW, WORTH, MASK, NOW, {"divergence": "binary_kl"}, sampled_logps=THEN)
    assert metrics["apart"].values[1, 0].item() == pytest.approx(0.192042, abs=1e-5)
    assert loss[2].item() == pytest.approx(0.5)


def test_advantages_by_hand(advantages_of):
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards are worth nothing, also a lone one's."""
    found, _ = advantages_of([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.577349, -1.154699, 0.577349, 0, 0, 0], abs=1e-6)
