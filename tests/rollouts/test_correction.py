"""Importance weights: numbers worked out by hand, and their effect on runs of methods that know nothing of them."""

import math

import pytest
import torch
from posttrain.errors import SettingsError
from posttrain.generation.local.hf import HfGenerator
from posttrain.settings import Settings
from posttrain.training.correction import Correction, choose_correction

#: Logarithms of trainer by sampler of three answers of 2, 3 and 1 tokens.
LOG_RATIO = torch.tensor([[0.05, 0.0, 9.0], [0.0, -0.05, 0.8], [-0.7, 9.0, 9.0]])
MASK = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
TOKENS = [[1.051271, 1.0, 1.0], [1.0, 0.951229, 2.225541], [0.496585, 1.0, 1.0]]
ANSWERS = [1.051271, 2.117000, 0.496585]  # e^0.05, e^0.75, e^-0.7


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("truncated-token", [[1.051271, 1, 1], [1, 0.951229, 2], [0.496585, 1, 1]]),
        ("masked-token", [[1.051271, 1, 1], [1, 0.951229, 0], [0, 1, 1]]),
        ("truncated-sequence", [[1.051271, 1.051271, 1], [2, 2, 2], [0.496585, 1, 1]]),
        ("masked-sequence", [[1.051271, 1.051271, 1], [0, 0, 0], [0, 1, 1]]),
    ],
)
def test_the_presets(preset, expected):
    weights = Correction(preset, 0.5, 2.0).weights(LOG_RATIO, MASK)
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float32), rtol=1e-5, atol=1e-6)


def test_wide_bounds_leave_the_ratios():
    token, answer = (
        Correction(f"masked-{level}", 0.1, 9.0).weights(LOG_RATIO, MASK) for level in ("token", "sequence")
    )
    torch.testing.assert_close(token, torch.tensor(TOKENS), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(answer[:, 0], torch.tensor(ANSWERS), rtol=1e-5, atol=1e-6)


def test_it_is_on_where_sampler_and_trainer_differ():
    assert choose_correction(Settings().correction, needed=False) is None
    assert choose_correction(Settings().correction, needed=True) == Correction("truncated-token", 0.5, 2.0)
    assert choose_correction(Settings(correction="off").correction, needed=True) is None
    assert choose_correction(Settings(correction="masked-token").correction, needed=False) == Correction(
        "masked-token", 0.5, 2.0
    )
    bounds = Settings(correction_low=0.25, correction_high=5.0).correction
    assert choose_correction(bounds, needed=True) == Correction("truncated-token", 0.25, 5.0)
    with pytest.raises(SettingsError, match=r"correction-low is 1.5 .* expected 0 <= low < 1 < high"):
        choose_correction(Settings(correction_low=1.5).correction, needed=False)


def shifted(difference):
    """A sampler that reports log-probs ``difference`` below the true ones, as one of other weights would."""

    class Shifted(HfGenerator):
        def generate(self, *arguments):
            found = super().generate(*arguments)
            for completion in (one for group in found for one in group):
                completion.logps -= difference
            return found

    return lambda compute: Shifted(compute.policy.model, compute.tokenizer, compute.stop_ids, 64)


@pytest.mark.parametrize("method", ["grpo", "rloo", "dr-grpo", "gspo", "online-dpo"])
def test_every_method_has_it_without_a_line(train, method):
    """G20: a ratio of 4 is cut to 2, so each gradient is doubled; masked it is nothing; values stay as they are."""
    found = {}
    for preset in ("off", "truncated-token", "masked-token", "truncated-sequence"):
        run = train(method, shifted(math.log(4)), steps=1, batch_size=4, correction=preset, beta=0.1)
        found[preset] = run.metrics[0]
    norm = found["off"]["grad_norm"]
    assert norm > 1e-4
    assert found["truncated-token"]["grad_norm"] == pytest.approx(2 * norm, rel=1e-4)
    assert found["truncated-sequence"]["grad_norm"] == pytest.approx(2 * norm, rel=1e-4)
    assert found["masked-token"]["grad_norm"] == 0
    assert {line["loss"] for line in found.values()} == {found["off"]["loss"]}
    line = found["masked-token"]
    assert line["sampler_difference"] == pytest.approx(math.log(4), rel=1e-4)
    assert line["sampler_difference_max"] == pytest.approx(math.log(4), rel=1e-3)
    assert line["sampler_difference_share"] == 1
    assert line["sampler_ratio_min"] == pytest.approx(4, rel=1e-3)
    assert line["sampler_ratio_max"] == pytest.approx(4, rel=1e-3)
    assert line["sampler_effective_share"] == pytest.approx(1, rel=1e-4)  # equal weights lose nothing
    assert line["sampler_weight_zero"] == 1


def test_the_effective_share_of_unequal_weights(train):
    """Weights 1 and 3, equally often: (4 / 2)^2 / (10 / 2) = 0.8."""

    class Half(HfGenerator):
        def generate(self, *arguments):
            found = super().generate(*arguments)
            for completion in (one for group in found for one in group):
                completion.logps[::2] -= math.log(3)
            return found

    run = train(
        "grpo", lambda made: Half(made.policy.model, made.tokenizer, made.stop_ids, 64), steps=1, stop=["q"],
        max_new_tokens=2, data=[{"prompt": "ab"}], batch_size=1, group_size=32, seed=3,
    )  # fmt: skip
    line = run.metrics[0]
    low = 1 - (line["sampler_ratio"] - 1) / 2  # share of the tokens with weight 1
    assert line["sampler_effective_share"] == pytest.approx((3 - 2 * low) ** 2 / (9 - 8 * low), rel=1e-4)
    assert line["sampler_ratio_min"] == pytest.approx(1, rel=1e-4)
    assert line["sampler_ratio_max"] == pytest.approx(3, rel=1e-4)


def test_g16_unknown_log_probs_are_dropped_and_counted(train):
    """G16: a completion whose log-prob is not known is left out; the others learn; the account says so."""

    class Unknowing(HfGenerator):
        def generate(self, *arguments):
            found = super().generate(*arguments)
            found[0][0].logps[0] = math.nan
            for completion in found[1]:
                completion.logps[:] = math.nan
            return found

    run = train(
        "grpo", lambda compute: Unknowing(compute.policy.model, compute.tokenizer, compute.stop_ids, 64), steps=2
    )
    for number, line in enumerate(run.metrics, 1):
        assert math.isfinite(line["loss"])
        assert line["prompts_dropped_nan_logps"] == number  # the second prompt of each step, all of it
        assert line["prompts_trained"] == number
    assert sum(run.source.collector.ledger.lengths["nan-logps"].values()) == 2 * (1 + 4)
