import math

import pytest
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig


@pytest.mark.parametrize(
    ("divergence", "slope"),
    [
        ("reverse_kl", lambda rho: rho),
        ("forward_kl", lambda rho: 1 - math.exp(-rho)),
        ("js_divergence", lambda rho: math.log(2 * math.exp(rho) / (1 + math.exp(rho)))),
        ("alpha_divergence", lambda rho: (math.exp(-0.5 * rho) - 1) / -0.5),
    ],
)
def test_by_hand(call_loss, divergence, slope):
    """The formulas, number by number, on the log-ratios 1 and -0.5, -0.5 and 0.25."""
    expected = [-logsig(0.1 * (slope(w) - slope(r))) for w, r in ((1, -0.5), (-0.5, 0.25))]
    assert call_loss(POLICY, REFERENCE, divergence=divergence)[0].tolist() == pytest.approx(expected)


def test_alpha_of_one_is_dpo_and_of_nearly_zero_is_forward(call_loss):
    near = {"divergence": "alpha_divergence", "alpha": 1 + 1e-9}
    assert call_loss(POLICY, REFERENCE, **near)[0].tolist() == pytest.approx(
        call_loss(POLICY, REFERENCE, divergence="reverse_kl")[0].tolist(), abs=1e-6
    )
    near["alpha"] = 1e-9
    assert call_loss(POLICY, REFERENCE, **near)[0].tolist() == pytest.approx(
        call_loss(POLICY, REFERENCE, divergence="forward_kl")[0].tolist(), abs=1e-6
    )
