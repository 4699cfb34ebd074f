"""Mixtures of experts: log-probs and gradients are plain transformers', row by row, however rows are laid out."""

import copy

import pytest
import torch
from posttrain.contract.views import Sequence
from posttrain.models.probe import choose_layout
from posttrain.network import attention
from posttrain.network.chunked_head import TokenQuery
from posttrain.network.find_head import find_head
from posttrain.network.token_model import TokenModel
from posttrain_testkit.row_by_row import row_by_row
from posttrain_testkit.tiny_experts import FAMILIES, tiny_experts

#: Type -> largest difference of a log-prob, and of a gradient relative to the largest entry of all.
WITHIN = {torch.float32: 1e-4, torch.float64: 1e-6}


def rows() -> list[Sequence]:
    """Unlike lengths up to three of gpt-oss's windows; three share a prompt, and one branches from it."""
    draw = torch.Generator().manual_seed(5)

    def letters(count: int) -> torch.Tensor:
        return torch.randint(4, 13, (count,), generator=draw)

    prompt = letters(18)
    found = []
    for start, count in ((prompt, 4), (prompt[:5], 6), (prompt, 7), (torch.cat([prompt[:16], letters(3)]), 2)):
        ids = torch.cat([start, letters(count)])
        found.append(Sequence(ids, torch.arange(len(ids)) >= len(start)))
    return found


@pytest.mark.parametrize("dtype", WITHIN)
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_together_equal_plain_rows_alone(family, dtype):
    plain = tiny_experts(family, dtype=dtype).eval()
    attention.register()
    own = copy.deepcopy(plain)
    own.set_attn_implementation(attention.NAME)
    # transformers' eager attention takes softmaxes in float32; gpt-oss, which has sinks, has no other.
    plain.set_attn_implementation("eager" if family == "gpt_oss" else "sdpa")
    policy = TokenModel(own, find_head(own))
    assert choose_layout(policy) == []
    assert policy.shared
    wanted, gradients = row_by_row(plain, rows())
    largest = max(float(torch.as_tensor(one).abs().max()) for one in gradients.values())
    for packed, shared, cut in ((True, True, 4), (True, False, 4), (False, False, 4), (True, True, 1), (True, True, 3)):
        policy.packed, policy.shared = packed, shared
        policy.zero_grad()
        passes = [rows()[start : start + cut] for start in range(0, 4, cut)]
        found = torch.cat([policy(part, TokenQuery(4))["logps"] for part in passes])
        torch.testing.assert_close(found, wanted, rtol=0, atol=WITHIN[dtype])
        found.square().sum().backward()
        for name, weight in policy.inner.named_parameters():
            got = torch.zeros_like(weight) if weight.grad is None else weight.grad
            assert float((got - gradients[name]).abs().max()) <= WITHIN[dtype] * largest, name
