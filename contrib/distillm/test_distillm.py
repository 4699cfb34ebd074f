import math
from types import SimpleNamespace

import pytest
import torch
from posttrain import Rollout, SampleRequest
from posttrain.contract.generation import Completion
from posttrain_testkit.by_hand import method_beside, tensor

METHOD = method_beside(__file__)

#: Teacher (3/4, 1/4), student (1/4, 3/4), as logits; the constants must not matter.
TEACHER = tensor([0.75, 0.25]).log() + 2.0
STUDENT = tensor([0.25, 0.75]).log() - 1.0


def statistics(student, teacher, labels=None, **options):
    labels = torch.zeros(len(student), dtype=torch.long) if labels is None else labels
    config = METHOD.config(options)
    return METHOD.token_statistics(logits=student, labels=labels, teacher_logits=teacher, config=config)


def test_divergence_by_hand():
    """p = (3/4, 1/4), s = (1/4, 3/4), alpha 1/2: both to the uniform mixture, 3/4 ln 3/2 + 1/4 ln 1/2 = 0.130812."""
    for kind in ("skl", "srkl"):
        assert statistics(STUDENT, TEACHER, divergence=kind, alpha=0.5)["divergence"].item() == pytest.approx(
            0.130812, abs=1e-6
        )


def test_directions_and_the_skew():
    """p = (9/10, 1/10), s = (1/2, 1/2), alpha 1/4. skl: mixture (0.6, 0.4): 0.9 ln 1.5 + 0.1 ln 0.25. srkl: mixture
    3/4 p + 1/4 s = (0.8, 0.2): 0.5 ln 0.625 + 0.5 ln 2.5."""
    p, s = tensor([0.9, 0.1]).log(), torch.zeros(1, 2, dtype=torch.float64)
    expected = 0.9 * math.log(1.5) + 0.1 * math.log(0.25)
    assert statistics(s, p, divergence="skl", alpha=0.25)["divergence"].item() == pytest.approx(expected)
    expected = 0.5 * math.log(0.625) + 0.5 * math.log(2.5)
    assert statistics(s, p, divergence="srkl", alpha=0.25)["divergence"].item() == pytest.approx(expected)


def test_gradient_equals_finite_differences():
    student, teacher = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for kind in ("skl", "srkl"):
        assert torch.autograd.gradcheck(
            lambda logits, kind=kind: statistics(logits, teacher, divergence=kind)["divergence"],
            (student.clone().requires_grad_(),),
        )


def plan(state, draws, **options):
    turns = iter(draws)
    return METHOD.plan_rollouts(
        prompts=[{"completion": "a"}] * 2, group_size=2, config=METHOD.config(options), state=state,
        random=SimpleNamespace(random=lambda: next(turns)),
    )[0]  # fmt: skip


def test_who_answers():
    """The student below student_share; from the buffer, once there is one, below replay_share."""
    assert plan({}, [0.9, 0.0]) == [SampleRequest(source="data")]
    assert plan({}, [0.1, 0.1]) == [SampleRequest(2)]
    state = {"buffer": ["something"]}
    assert plan(state, [0.1, 0.1]) == [SampleRequest(source="data")]
    assert state["replay"] is True
    assert plan(state, [0.1, 0.9]) == [SampleRequest(2)]
    assert state["replay"] is False


def test_the_student_s_answers_are_kept_and_drawn():
    completion = Completion(torch.arange(2), torch.zeros(2), True, "mine")
    items = [Rollout(place, torch.arange(2), completion, {"prompt": "x"}, 0.0) for place in range(3)]
    state, config = {"replay": False}, METHOD.config({"buffer_size": 2})
    rollouts = SimpleNamespace(items=items, source=["policy"] * 3)
    assert METHOD.select(rollouts=rollouts, rewards=None, config=config, state=state).rollouts == items
    assert len(state["buffer"]) == 2
    state["replay"] = True
    theirs = SimpleNamespace(items=items, source=["data"] * 3)
    found = METHOD.select(rollouts=theirs, rewards=None, config=config, state=state).rollouts
    assert [(one.source, one.group, one.completion.text) for one in found] == [("replay", i, "mine") for i in range(3)]
