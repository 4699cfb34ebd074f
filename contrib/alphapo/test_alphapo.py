import pytest
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig


def test_by_hand(call_loss):
    """(1 - e^0.625) / 0.25 = -3.472984 and (1 - e^0.6) / 0.25 = -3.288475, times 2.5: margin -0.461273."""
    loss, metrics = call_loss(POLICY, REFERENCE)
    assert metrics["reward_chosen"][0].item() == pytest.approx(2.5 * -3.472984, abs=1e-5)
    assert metrics["margin"][0].item() == pytest.approx(-0.461273, abs=1e-5)
    assert loss[0].item() == pytest.approx(1.012655, abs=1e-6)


def test_no_bend_is_simpo(call_loss):
    """2.5 * (-2.5 + 2.4) - 0.1 = -0.35; a tiny bend comes close."""
    assert call_loss(POLICY, REFERENCE, alpha=0.0)[0][0].item() == pytest.approx(-logsig(-0.35))
    assert call_loss(POLICY, REFERENCE, alpha=1e-7)[0].tolist() == pytest.approx(
        call_loss(POLICY, REFERENCE, alpha=0.0)[0].tolist(), abs=1e-5
    )
