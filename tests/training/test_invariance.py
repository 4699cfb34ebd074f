"""The same gradient however a step is cut (S1, S3, S6, S8, S9), for every stable method, in float64."""

import pytest
import torch
from posttrain.contract.views import Step
from posttrain.training.step import optimiser_step

from .conftest import STABLE


def gradients(train, method: str, size: int | None, **keywords) -> tuple[float, dict[str, torch.Tensor]]:
    run = train(
        method,
        steps=1,
        dtype="float64",
        torch_dtype=torch.float64,
        micro_batch_size=size,
        learning_rate=0.0,
        **keywords,
    )
    run.progress.step = 0
    examples = run.source.examples(0)
    outcome = optimiser_step(run.compute, examples, Step(0, 1))
    found = {n: p.grad.clone() for n, p in run.policy.named_parameters() if p.grad is not None}
    return outcome.loss, found


@pytest.mark.parametrize("method", STABLE)
def test_eight_by_one_four_by_two_and_one_by_eight_agree(train, method):
    whole_loss, whole = gradients(train, method, 8 if method not in ("grpo", "rloo") else 32)
    for size in (1, 2, 4):
        loss, cut = gradients(train, method, size)
        assert loss == pytest.approx(whole_loss, rel=1e-9, abs=1e-12)
        for name, gradient in whole.items():
            torch.testing.assert_close(cut[name], gradient, rtol=1e-6, atol=1e-10)
