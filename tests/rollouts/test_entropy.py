"""The entropy of online runs: computed and logged by the core, without a gradient, whatever the method."""

from pathlib import Path
from types import ModuleType

import pytest
import torch
from posttrain import hookimpl
from posttrain.catalogue import methods
from posttrain.catalogue.cards import Card
from posttrain.contract.surrogate import entropy_metric
from posttrain.contract.views import View, Views
from posttrain.generation.local.hf import HfGenerator
from posttrain_testkit.tiny import tiny_model

RLOO = str(Path(__file__).resolve().parents[2] / "plugins" / "rloo")
LOGITS = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64, requires_grad=True)


def method_with(schema: str, **hooks):
    module = ModuleType("mine")
    vars(module).update(hooks)
    return methods.from_module(module, Card("mine", "0.1.0", "experimental", "Mine.", (schema,)))


def test_online_methods_have_it_without_a_hook():
    """Of (1/2, 1/2): ln 2. Of (e, 1) / (e + 1): ln(e + 1) - e / (e + 1) = 0.582203."""
    found = method_with("prompt").token_statistics(logits=LOGITS, labels=None, config=None)
    assert found["entropy"].tolist() == pytest.approx([0.693147, 0.582203], abs=1e-6)
    assert not found["entropy"].requires_grad
    assert method_with("preference").token_statistics(logits=LOGITS, labels=None, config=None) is None


def test_the_methods_own_entropy_stays():
    @hookimpl
    def posttrain_token_statistics(logits):
        return {"entropy": logits.sum(-1), "other": logits[:, 0]}

    method = method_with("prompt", posttrain_token_statistics=posttrain_token_statistics)
    found = method.token_statistics(logits=LOGITS, labels=None, config=None)
    assert found["entropy"].tolist() == [0, 1]
    assert found["entropy"].requires_grad
    assert found["other"].tolist() == [0, 1]


def test_the_metric_takes_every_role_and_no_padding():
    mask = torch.tensor([[True, False], [True, True]])
    views = [View(torch.zeros(2, 2), mask, entropy=torch.tensor([[base, 99.0], [base, base]])) for base in (1.0, 4.0)]
    (metric,) = entropy_metric(Views(chosen=views[0], rejected=views[1])).values()
    assert metric.values[metric.mask].tolist() == [1, 4, 1, 1, 4, 4]
    assert entropy_metric(Views(completion=View(torch.zeros(1, 1), mask[:1, :1]))) == {}


def test_a_run_logs_what_plain_transformers_give(train):
    """A first step of rloo, which says nothing of entropy: its samples go through the bare model."""
    sampled = []

    class Recording(HfGenerator):
        def generate(self, prompts, *arguments):
            found = super().generate(prompts, *arguments)
            sampled.extend((prompt, one.ids) for prompt, group in zip(prompts, found, strict=True) for one in group)
            return found

    generator = lambda compute: Recording(compute.policy.model, compute.tokenizer, compute.stop_ids, 64)  # noqa: E731
    run = train(RLOO, generator, steps=1, temperature=0.7, beta=0.0)
    model, entropies = tiny_model(), []
    for prompt, answer in sampled:
        with torch.no_grad():
            ids = torch.cat([torch.as_tensor(prompt), torch.as_tensor(answer)])
            logits = model(ids[None]).logits[0, len(prompt) - 1 : -1].double() / 0.7  # (t, V)
        logps = logits.log_softmax(-1)
        entropies.append(-(logps.exp() * logps).sum(-1))
    assert len(entropies) == 8
    assert run.metrics[0]["entropy"] == pytest.approx(float(torch.cat(entropies).mean()), rel=1e-5)
