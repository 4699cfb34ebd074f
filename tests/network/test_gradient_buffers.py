"""Gradients that keep their memory, and what may be added to them directly."""

import pytest
import torch
from posttrain.network.chunked_head import Head, TokenQuery, token_statistics
from posttrain.network.kernels.cpu.gradient_buffers import clear_gradients, close_gradients, open_gradient
from posttrain.network.kernels.cpu.recompute_ops import use_recomputing_ops
from torch import nn


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def test_gradients_keep_their_memory():
    model = two_layers()
    parameters = list(model.parameters())
    found = []
    for _ in range(3):
        clear_gradients(parameters)
        model(torch.ones(2, 3)).sum().backward()
        close_gradients(parameters)
        found.append([p.grad.data_ptr() for p in parameters])
    assert found[0] == found[1] == found[2]


def test_gradients_start_at_zero():
    model = two_layers()
    parameters = list(model.parameters())
    sums = []
    for _ in range(2):
        clear_gradients(parameters)
        for _ in range(2):
            model(torch.ones(2, 3)).sum().backward()
        close_gradients(parameters)
        sums.append([p.grad.clone() for p in parameters])
    for first, second in zip(*sums, strict=True):
        assert torch.equal(first, second)
    assert sums[0][-1].tolist() == [4.0, 4.0]  # d sum / d bias is 1 for each of 2 rows and 2 passes


def test_a_parameter_that_no_pass_reached_has_no_gradient():
    """A zero in its place would let momentum and weight decay move it."""
    model = two_layers()
    parameters = list(model.parameters())
    for used in (model[0], model):
        clear_gradients(parameters)
        used(torch.ones(2, 3)).sum().backward()
        close_gradients(parameters)
        reached = used is model
        assert [p.grad is not None for p in parameters] == [True, True, reached, reached]


def tied(padding):
    """An embedding whose weight is also the head's, in float64 and float32 alike."""
    torch.manual_seed(0)
    table = nn.Embedding(11, 6, padding_idx=padding)
    head = nn.Linear(6, 11, bias=False)
    head.weight = table.weight
    return nn.ModuleDict({"table": table, "head": head})


def chunked_loss(model, ids):
    states = model["table"](ids[:-1]).tanh()
    return -token_statistics(states, ids[1:], Head(model["head"]), TokenQuery(chunk=3))["logps"].mean()


@pytest.mark.parametrize("padding", [None, 4])
def test_directly_added_gradients_are_those_of_autograd(padding):
    ids = torch.tensor([1, 4, 2, 9, 4, 4, 0, 10])
    plain, lean = tied(padding), tied(padding)
    logits = plain["head"](plain["table"](ids[:-1]).tanh())
    nn.functional.cross_entropy(logits, ids[1:]).backward()
    assert use_recomputing_ops(lean) == 1
    parameters = list(lean.parameters())
    for _ in range(2):  # the second time over the first one's numbers
        clear_gradients(parameters)
        memory = open_gradient(lean["table"].weight).data_ptr()
        chunked_loss(lean, ids).backward()
        close_gradients(parameters)
        (weight,) = parameters
        assert weight.grad.data_ptr() == memory
        torch.testing.assert_close(weight.grad, plain["table"].weight.grad)


def test_outside_a_step_autograd_is_given_the_gradient():
    ids = torch.tensor([1, 4, 2, 9])
    lean = tied(None)
    use_recomputing_ops(lean)
    (weight,) = lean.parameters()
    weight.grad = torch.ones_like(weight)  # left over from somewhere: nobody may add to it
    (found,) = torch.autograd.grad(chunked_loss(lean, ids), [weight])
    assert found.abs().max() > 0
    assert torch.equal(weight.grad, torch.ones_like(weight))
    assert open_gradient(weight) is None
