import pytest
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig


def test_by_hand(call_loss):
    """0.9 * 0.5 + 0.729 * 0.5 = 0.8145; 0.45 - 0.81 * 0.5 + 0.729 * 0.5 - 0.6561 * 0.5 - 0.59049 * 0.5 = -0.213795."""
    loss, metrics = call_loss(POLICY, REFERENCE, gamma=0.9)
    assert metrics["reward_chosen"][0].item() == pytest.approx(0.08145)
    rejected = sum(ratio * 0.9 ** (t + 1) for t, ratio in enumerate((0.5, -0.5, 0.5, -0.5, -0.5)))
    assert metrics["reward_rejected"][0].item() == pytest.approx(0.1 * rejected)
    assert loss[0].item() == pytest.approx(0.643054, abs=1e-6)


def test_without_decay_it_is_dpo(call_loss):
    assert call_loss(POLICY, REFERENCE, gamma=1.0)[0].tolist() == pytest.approx([-logsig(0.15), -logsig(-0.075)])
