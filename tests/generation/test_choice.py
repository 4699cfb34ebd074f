import math
import random

import pytest
import torch
from posttrain.contract.generation import Sampling
from posttrain.errors import SettingsError
from posttrain.generation.local.sampling import choose, restrict
from transformers import TopKLogitsWarper, TopPLogitsWarper


def test_uniform_number_selects_by_cumulative_probability():
    """p = (0.5, 0, 0.25, 0.25): the cumulative steps are 0.5, 0.5, 0.75, 1."""
    logits = torch.tensor([0.5, 0.0, 0.25, 0.25]).log().expand(6, 4)
    tokens, logps = choose(logits, Sampling(1), [0.0, 0.49, 0.51, 0.74, 0.76, 1 - 2**-53])
    assert tokens.tolist() == [0, 0, 2, 2, 3, 3]
    torch.testing.assert_close(logps, torch.tensor([0.5, 0.5, 0.25, 0.25, 0.25, 0.25]).log())


def test_tokens_without_probability_are_skipped_at_exact_steps():
    """p = (0, 0.5, 0, 0.5): 0 and 0.5 lie exactly on the edges of the tokens that have none."""
    logits = torch.tensor([float("-inf"), 0.0, float("-inf"), 0.0]).expand(2, 4)
    assert choose(logits, Sampling(1), [0.0, 0.5])[0].tolist() == [1, 3]


def test_last_tokens_without_probability_are_never_chosen():
    logits = torch.tensor([[1.3, 0.2, 0.7] + [float("-inf")] * 5]).repeat(50, 1)
    tokens, logps = choose(logits, Sampling(1), [1 - 2**-53] * 49 + [1.0])  # float32 rounds to 1
    assert (tokens == 2).all()
    assert logps.isfinite().all()


def test_frequencies_match_the_softmax_at_the_temperature():
    """20,000 draws of 6 tokens: every frequency within 4 standard errors of exp(logit / 0.7) / sum."""
    logits = [0.3, -1.0, 2.0, 0.0, 1.1, -3.0]
    weights = [math.exp(x / 0.7) for x in logits]
    count = 20_000
    uniforms = [random.Random(seed).random() for seed in range(count)]
    tokens, _ = choose(torch.tensor(logits).expand(count, 6), Sampling(1, temperature=0.7), uniforms)
    for token, weight in enumerate(weights):
        p = weight / sum(weights)
        assert abs((tokens == token).sum().item() / count - p) < 4 * math.sqrt(p * (1 - p) / count)


@pytest.mark.parametrize(("top_k", "top_p"), [(5, 1.0), (0, 0.5), (7, 0.8), (1, 1.0), (0, 0.001), (500, 0.999)])
def test_top_k_and_top_p_keep_what_transformers_keeps(top_k, top_p):
    logps = torch.randn(20, 40, generator=torch.Generator().manual_seed(1)).mul(2).log_softmax(-1)
    expected = logps
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    assert torch.equal(restrict(logps, top_k, top_p).isinf(), expected.isinf())


def test_restriction_limits_the_choice_but_not_the_log_prob():
    """G5: with top_k 1 the only choice still carries its probability under the full distribution."""
    probabilities = torch.tensor([[0.2, 0.5, 0.3]])
    tokens, logps = choose(probabilities.log(), Sampling(1, top_k=1), [0.99])
    assert tokens.item() == 1
    assert logps.item() == pytest.approx(math.log(0.5), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_new_tokens": 0}, "max-new-tokens is 0. It must be 1 or more."),
        ({"temperature": -1.0}, "temperature is -1.0. It must be 0 (greedy) or a positive number."),
        ({"temperature": float("nan")}, "temperature is nan. It must be 0 (greedy) or a positive number."),
        ({"top_p": 0.0}, "top-p is 0.0. It must be above 0 and at most 1 (1 is off)."),
        ({"top_k": -2}, "top-k is -2. It must be 0 (off) or more."),
        ({"stop": ("",)}, "stop is ('',). It must be a list of strings that are not empty."),
    ],
)
def test_impossible_settings_are_refused(options, text):
    with pytest.raises(SettingsError) as caught:
        Sampling(**{"max_new_tokens": 4, **options})
    assert str(caught.value) == text


def test_temperature_zero_is_greedy():
    sampling = Sampling(4, temperature=0)
    assert sampling.greedy
    assert sampling.logp_temperature == 1
