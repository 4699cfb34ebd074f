import math

import pytest
import torch
from posttrain.errors import SettingsError
from posttrain.settings import Settings
from posttrain_testkit.by_hand import method_beside, tensor

METHOD = method_beside(__file__)
LOGITS = tensor([2.0, 0.0])


def statistics(**options):
    config = METHOD.config(options)
    return METHOD.token_statistics(logits=LOGITS, labels=torch.tensor([1]), config=config)


def test_the_temperature_is_undone():
    """Logits (2, 0) at temperature 1/2 were (1, 0): -log of the second is ln(1 + e). At 1 they are ln(1 + e^2)."""
    assert statistics(sampling_temperature=0.5)["nll"].item() == pytest.approx(math.log(1 + math.e))
    assert statistics(sampling_temperature=1.0)["nll"].item() == pytest.approx(math.log(1 + math.e**2))
    p = math.e / (1 + math.e)
    expected = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert statistics(sampling_temperature=0.5)["entropy"].item() == pytest.approx(expected)


def test_the_temperature_follows_the_run():
    assert METHOD.config({}).sampling_temperature == 0.6
    assert METHOD.config({}, Settings(temperature=0.8)).sampling_temperature == 0.8


def test_imitating_cautious_samples_sharpens():
    """The expected gradient at temperature 1/2 of a model (0.7, 0.3): it raises what is likely. Samples come from
    (0.49, 0.09) / 0.58; the expected gradient of the loss by the first logit is 0.7 - 0.49 / 0.58 < 0. At the samples'
    own temperature it would be 0."""
    logits = tensor([0.7, 0.3]).log().requires_grad_()
    shown = tensor(0.49, 0.09) / 0.58
    config = METHOD.config({"sampling_temperature": 0.5})
    found = [METHOD.token_statistics(logits=2 * logits, labels=torch.tensor([i]), config=config)["nll"] for i in (0, 1)]
    sum(chance * one.sum() for chance, one in zip(shown, found, strict=True)).backward()
    assert logits.grad[0, 0].item() == pytest.approx(0.7 - 0.49 / 0.58)


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(SettingsError, match=r"sampling_temperature is 0\.0, expected a temperature above 0"):
        METHOD.config({"sampling_temperature": 0.0})
