import math
from types import SimpleNamespace

import pytest
import torch
from posttrain.contract.views import Batch, Step, View, Views
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH, method_beside

METHOD = method_beside(__file__)


def terms_of(new, source, number=0, total=1, **options):
    """The two terms, each reduced over its own tokens."""
    examples = [
        SimpleNamespace(columns={"source": who}, sequences={"completion": [SimpleNamespace(count=count)]})
        for who, count in zip(source, (2, 1), strict=True)
    ]
    columns = METHOD.annotate(examples=examples, models=None, config=METHOD.config(options), state={})
    columns = {name: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True) for name, rows in columns.items()}
    columns |= {"advantages": WORTH, "old_logps": OLD}
    policy = Views(completion=View(new, MASK, entropy=torch.ones_like(new)))
    config, step = METHOD.config(options), Step(number, total)
    terms, metrics = METHOD.loss(batch=Batch(2, columns), policy=policy, reference=None, config=config, step=step)
    return *(terms[name].values[terms[name].mask].mean() for name in ("policy", "imitation")), metrics


def test_loss_by_hand():
    """One sample with -2.2, and a demonstrated token of probability p = e^-0.5 / 2 with p (1 - p) log p."""
    policy, imitation, metrics = terms_of(NEW, ["policy", "data"])
    p = math.exp(-0.5) / 2
    assert policy.item() == pytest.approx(0.9 * -2.2)
    assert imitation.item() == pytest.approx(-0.1 * p * (1 - p) * math.log(p))
    assert metrics["mu"].tolist() == [0.1, 0.1]
    _, plain, _ = terms_of(NEW, ["policy", "data"], phi=False, mu_peak=0.9)
    assert plain.item() == pytest.approx(-0.9 * math.log(p))


def test_the_weight_of_a_token_is_held_constant():
    new = NEW.clone().requires_grad_()
    terms_of(new, ["policy", "data"])[1].backward()
    p = math.exp(-0.5) / 2
    assert new.grad.flatten().tolist() == pytest.approx([0, 0, -0.1 * p * (1 - p), 0])


def test_mu_rises_and_falls():
    """To the peak of 0.9 in the first tenth, half way down at 55 %, and 0.1 at the end."""
    options = {"mu_peak": 0.9, "mu_valley": 0.1, "mu_warmup": 0.1}
    found = [terms_of(NEW, ["policy", "data"], number, 100, **options)[2]["mu"][0].item() for number in (0, 5, 10, 55)]
    assert found == pytest.approx([0, 0.45, 0.9, 0.5])


def test_demonstrations_are_not_compared(advantages_of):
    """Rewards 1, 0 of samples beside a demonstration with 100."""
    found, _ = advantages_of([1, 0, 100], [0, 0, 0], source=["policy", "policy", "data"])
    assert found.tolist() == pytest.approx([0.707106, -0.707106, 0], abs=1e-5)
