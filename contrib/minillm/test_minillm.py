import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from posttrain import SampleRequest, api
from posttrain.contract.views import View, Views
from posttrain.errors import SettingsError
from posttrain_testkit.by_hand import call_loss, method_beside, tensor
from posttrain_testkit.tiny import count_of_a, tiny_model, tiny_tokenizer

HERE = Path(__file__).parent
METHOD = method_beside(__file__)
D = torch.float64

MASK = torch.tensor([[True, True, True], [True, False, False]])
NEW = tensor([-1.0, -2.0, -0.5], [-0.5, 0.0, 0.0])
#: Rewards q - l of 1, -0.5, 2 and of -0.25.
TEACHER = NEW + tensor([1.0, -0.5, 2.0], [-0.25, 7.0, 7.0])
PLAIN = {"teacher_share": 0.0, "single_step_decomposition": False}


def loss_of(new=NEW, old=NEW, sampled=NEW, worth=(0.0, 0.0), **options):
    divergence = torch.full_like(new, 0.3)
    view = View(new, MASK, teacher_logps=TEACHER, divergence=divergence, entropy=divergence)
    columns = {"advantages": torch.tensor(worth, dtype=D), "old_logps": old, "sampled_logps": sampled}
    return call_loss(METHOD, Views(completion=view), columns=columns, **options)


def worth_of(**options):
    """What each token is worth, as the log has it."""
    return loss_of(**options)[1]["advantage"].values[MASK].tolist()


def test_sums_of_rewards_from_a_token_on():
    """2; -0.5 + 2 = 1.5; 1 + 1.5 = 2.5. Divided by the 3, 2 and 1 tokens left: 0.833333, 0.75, 2."""
    assert worth_of(**PLAIN, length_normalization=False) == pytest.approx([2.5, 1.5, 2, -0.25])
    assert worth_of(**PLAIN) == pytest.approx([0.833333, 0.75, 2, -0.25], abs=1e-6)


def test_discounted_sums_and_their_divisor():
    """gamma 1/2: 2; -0.5 + 1 = 0.5; 1 + 0.25 = 1.25, divided by 1, 1.5 and 1.75. gamma 0: each its own reward."""
    found = worth_of(**PLAIN, gamma=0.5)
    assert found == pytest.approx([1.25 / 1.75, 0.5 / 1.5, 2, -0.25])
    for normalised in (True, False):
        assert worth_of(**PLAIN, gamma=0.0, length_normalization=normalised) == pytest.approx([1, -0.5, 2, -0.25])


def test_with_the_decomposition_a_token_answers_for_later_ones_only():
    """Mean of (-0.5, 2), then 2, then nothing, and nothing for an answer of one token. With gamma 0 nothing at all."""
    assert worth_of(teacher_share=0.0) == pytest.approx([0.75, 2, 0, 0])
    assert worth_of(teacher_share=0.0, length_normalization=False) == pytest.approx([1.5, 2, 0, 0])
    # gamma 1/2: half of (-0.5 + 1) / 1.5, then half of 2
    assert worth_of(teacher_share=0.0, gamma=0.5) == pytest.approx([0.5 * 0.5 / 1.5, 1, 0, 0])
    assert worth_of(teacher_share=0.0, gamma=0.0) == [0, 0, 0, 0]


def test_terms_of_the_loss():
    """Policy: minus what a token is worth. Single step: the divergence 0.3 of each token."""
    loss, _ = loss_of(teacher_share=0.0)
    assert set(loss) == {"policy", "single_step"}
    assert loss["policy"].mask is MASK
    assert loss["policy"].values[MASK].tolist() == pytest.approx([-0.75, -2, 0, 0])
    assert loss["single_step"].values[MASK].tolist() == pytest.approx([0.3] * 4)
    assert set(loss_of(**PLAIN)[0]) == {"policy"}
    by_answer, _ = loss_of(**PLAIN, aggregation="sequence")
    assert by_answer["policy"].tolist() == pytest.approx([-(0.833333 + 0.75 + 2) / 3, 0.25], abs=1e-6)


def test_rewards_of_the_task_are_added():
    assert worth_of(**PLAIN, worth=(0.5, -1.0)) == pytest.approx([1.333333, 1.25, 2.5, -1.25], abs=1e-6)
    assert worth_of(**PLAIN, worth=(0.5, -1.0), rkl_advantage=False) == [0.5, 0.5, 0.5, -1.0]


def advantages(rewards, **options):
    rollouts = SimpleNamespace(group=torch.zeros(len(rewards)))
    rewards = torch.tensor(rewards, dtype=D)
    return METHOD.advantages(rewards=rewards, rollouts=rollouts, config=METHOD.config(options), state={}).tolist()


def test_advantages_of_the_group():
    """{1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards, or none, are worth exactly 0 (G10)."""
    assert advantages([1.0, 0.0, 1.0], advantage_epsilon=0.0) == pytest.approx(
        [0.577350, -1.154701, 0.577350], abs=1e-6
    )
    assert advantages([1.0, 0.0, 1.0], task_weight=0.0) == [0, 0, 0]
    assert advantages([0.0, 0.0, 0.0]) == [0, 0, 0]
    assert advantages([5.0]) == [0]
    assert advantages([1.0, math.nan, 0.0])[1] == 0


def test_the_weight_is_against_whoever_drew_the_token():
    """The mixture's log-probs lie ln 2 above the student's: weights of 1/2, and 0.8 where the clipped loss is more."""
    mixed = NEW + math.log(2)
    loss, metrics = loss_of(sampled=mixed)
    assert metrics["ratio"].values[MASK].tolist() == pytest.approx([0.5] * 4)
    assert loss["single_step"].values[MASK].tolist() == pytest.approx([0.15] * 4)
    assert loss["policy"].values[MASK].tolist() == pytest.approx([-0.375, -1, 0, 0])  # min(w R, clip R) for R > 0
    assert loss_of(sampled=mixed, teacher_share=0.0)[1]["ratio"].values[MASK].tolist() == pytest.approx([1] * 4)
    bad = loss_of(sampled=mixed, worth=(-10.0, -10.0))[0]["policy"].values[MASK].tolist()
    assert bad == pytest.approx([0.8 * 9.25, 0.8 * 8, 8, 8])  # for R < 0 the clipped one


def test_no_gradient_goes_through_rewards_and_weights():
    """The gradient of the policy term is -w R, of the single step w times the divergence's own: TRL leaks a 1 here."""
    new = NEW.clone().requires_grad_()
    loss_of(new, **PLAIN)[0]["policy"].values[MASK].sum().backward()
    assert new.grad[MASK].tolist() == pytest.approx([-0.833333, -0.75, -2, 0.25], abs=1e-6)
    new = NEW.clone().requires_grad_()
    loss, _ = loss_of(new)
    assert not loss["single_step"].values.requires_grad  # the made-up divergence has none, so the weight has none


def test_statistics_by_hand():
    """Student (1/4, 3/4), teacher (3/4, 1/4): 1/4 ln 1/3 + 3/4 ln 3 = 0.549306; the teacher's token 1 is ln 1/4."""
    student, teacher = (tensor(one).log() for one in ([0.25, 0.75], [0.75, 0.25]))
    found = METHOD.token_statistics(
        logits=student, labels=torch.tensor([1]), teacher_logits=teacher, config=METHOD.config({})
    )
    assert found["divergence"].item() == pytest.approx(0.549306, abs=1e-6)
    assert found["teacher_logps"].item() == pytest.approx(math.log(0.25))


def test_gradient_of_the_divergence_equals_finite_differences():
    student, teacher = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(2), dtype=D)
    config = METHOD.config({})

    def divergence(logits):
        labels = torch.zeros(3, dtype=torch.long)
        found = METHOD.token_statistics(logits=logits, labels=labels, teacher_logits=teacher, config=config)
        return found["divergence"]

    assert torch.autograd.gradcheck(divergence, (student.requires_grad_(),))


def test_the_decomposed_gradient_is_that_of_the_whole_divergence(call_loss):
    """G1: answers of two tokens over two words, student and teacher each with a table. The mean over the student's
    answers of the gradient of both terms is that of KL(student || teacher) of whole answers, without normalisation."""
    random = torch.Generator().manual_seed(4)
    first, second = torch.randn(2, generator=random, dtype=D), torch.randn(2, 2, generator=random, dtype=D)
    first.requires_grad_(), second.requires_grad_()
    teach_first, teach_second = torch.randn(2, generator=random, dtype=D), torch.randn(2, 2, generator=random, dtype=D)
    a, b, p, q = (one.log_softmax(-1) for one in (first, second, teach_first, teach_second))
    answers = [(i, j) for i in range(2) for j in range(2)]
    chance = torch.stack([a[i] + b[i, j] for i, j in answers])  # (4,)
    theirs = torch.stack([p[i] + q[i, j] for i, j in answers])
    expected = torch.autograd.grad((chance.exp() * (chance - theirs)).sum(), (first, second), retain_graph=True)
    mask = torch.ones(4, 2, dtype=torch.bool)
    logps = torch.stack([torch.stack([a[i], b[i, j]]) for i, j in answers])  # (4, 2)
    steps = (a.exp() * (a - p)).sum(), (b.exp() * (b - q)).sum(-1)
    view = View(
        logps,
        mask,
        teacher_logps=torch.stack([torch.stack([p[i], q[i, j]]) for i, j in answers]),
        divergence=torch.stack([torch.stack([steps[0], steps[1][i]]) for i, _ in answers]),
        entropy=logps.detach(),
    )
    loss, _ = call_loss(
        Views(completion=view),
        columns={"advantages": torch.zeros(4, dtype=D), "old_logps": logps.detach()},
        teacher_share=0.0,
        length_normalization=False,
    )
    total = loss["policy"].values.sum(1) + loss["single_step"].values.sum(1)  # (4,)
    found = torch.autograd.grad((chance.detach().exp() * total).sum(), (first, second))
    for one, other in zip(found, expected, strict=True):
        assert one.flatten().tolist() == pytest.approx(other.flatten().tolist())


def test_who_is_asked():
    asked = METHOD.plan_rollouts(prompts=[{}], group_size=2, config=METHOD.config({}), state={}, random=None)
    assert asked == [[SampleRequest(2, source="teacher", mixture=0.2, mean="arithmetic")]]
    alone = METHOD.config({"teacher_share": 0.0})
    assert METHOD.plan_rollouts(prompts=[{}], group_size=2, config=alone, state={}, random=None) == [[SampleRequest(2)]]


def test_a_run_draws_from_the_mixture_and_weighs_it(tmp_path):
    """Weights are bounded by 1 / 0.8 as the mixture holds 0.8 of the student; without a mixture they are 1."""
    objects = {"model": tiny_model(), "tokenizer": tiny_tokenizer(), "teacher": tiny_model(seed=77)}
    usual = {"data": [{"prompt": "ab"}, {"prompt": "b"}], "batch_size": 2, "group_size": 8, "max_new_tokens": 5}
    usual |= {"steps": 2, "progress": "quiet", "cache": "off", "device": "cpu", "reward": count_of_a}
    mixed = api.train(str(HERE), **objects, **usual, output=str(tmp_path / "mixed"))
    sampled = [json.loads(line) for line in (tmp_path / "mixed" / "samples.jsonl").read_text().splitlines()]
    assert {one["source"] for one in sampled} == {"mixture"}
    assert 0.5 < mixed.metrics[0]["ratio"] < 1.25
    assert mixed.metrics[0]["ratio"] != pytest.approx(1, abs=1e-3)
    assert "reward" in mixed.metrics[0]
    plain = api.train(str(HERE), **objects, **usual, teacher_share=0.0, output=str(tmp_path / "plain"))
    assert plain.metrics[0]["ratio"] == pytest.approx(1, abs=1e-5)


def test_a_share_above_one_is_refused():
    with pytest.raises(SettingsError, match=r"teacher_share is 1\.5, expected a number from 0 to 1"):
        METHOD.config({"teacher_share": 1.5})
