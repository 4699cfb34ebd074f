"""Numbers worked by hand for the functions that methods share."""

import math

import pytest
import torch
from posttrain import tensors

D = torch.float64


def column(*values):
    return torch.tensor(values, dtype=D)


def test_group_statistics_by_hand():
    """Groups interleaved: {1, 3} has mean 2, sample deviation sqrt(2); {5, 5, 8} has mean 6, deviation sqrt(3)."""
    values, group = column(1, 5, 3, 5, 8), torch.tensor([7, 2, 7, 2, 2])
    assert tensors.group_mean(values, group).tolist() == pytest.approx([2, 6, 2, 6, 6])
    deviation = [2**0.5, 3**0.5, 2**0.5, 3**0.5, 3**0.5]
    assert tensors.group_std(values, group).tolist() == pytest.approx(deviation)


def test_group_advantages_by_hand():
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350, plus 0.1 it is 0.677350. The last one has no reward."""
    rewards, group = column(1, 5, 0, 1, math.nan), torch.tensor([0, 1, 0, 0, 0])
    found = tensors.group_advantages(rewards, group, 0.1)
    assert found.tolist() == pytest.approx([0.492114, 0, -0.984228, 0.492114, 0], abs=1e-6)
    assert tensors.group_advantages(rewards, group).tolist() == pytest.approx([1 / 3, 0, -2 / 3, 1 / 3, 0])
    equal = tensors.group_advantages(column(0.1, 0.1, 0.1), torch.zeros(3, dtype=torch.long), 1e-12)
    assert equal.tolist() == [0, 0, 0]


def test_leave_one_out_excludes_the_own_value():
    """G21. Of {1, 2, 6}: the others' means are 4, 3.5 and 1.5."""
    found = tensors.leave_one_out_mean(column(1, 2, 6), torch.zeros(3, dtype=torch.long))
    assert found.tolist() == pytest.approx([4, 3.5, 1.5])


@pytest.mark.parametrize("value", [0.1, -0.3, 1 / 3, 1e-8, 12345.678])
@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_values_have_exactly_their_value_as_mean(value, count, dtype):
    """G10. In plain arithmetic 0.1 + 0.1 + 0.1 is not 3 * 0.1; a difference of 1e-17 must not become an advantage."""
    values, group = torch.full((count,), value, dtype=dtype), torch.zeros(count, dtype=torch.long)
    assert torch.equal(tensors.group_mean(values, group), values)
    assert torch.equal(tensors.leave_one_out_mean(values, group), values)
    assert torch.equal(tensors.group_std(values, group), torch.zeros(count, dtype=dtype))


def test_unscored_members_are_as_if_absent():
    """G9. {1, NaN, 3}: mean 2, deviation sqrt(2), and 1's only other is 3. A group of NaN alone stays NaN."""
    values, group = column(1, math.nan, 3, math.nan), torch.tensor([0, 0, 0, 1])
    assert tensors.group_mean(values, group)[:3].tolist() == pytest.approx([2, 2, 2])
    assert tensors.group_std(values, group)[0].item() == pytest.approx(2**0.5)
    assert tensors.leave_one_out_mean(values, group)[[0, 2]].tolist() == pytest.approx([3, 1])
    assert tensors.group_mean(values, group)[3].isnan()


def test_masked_sum_and_mean():
    values, mask = column(1, 2, math.nan), torch.tensor([True, True, False])
    assert tensors.masked_sum(values, mask).item() == 3
    assert tensors.masked_mean(values, mask).item() == 1.5
    assert tensors.masked_mean(values, torch.zeros(3, dtype=torch.bool)).item() == 0


def test_kl_estimates_are_unbiased():
    """G1. A coin: policy (0.7, 0.3), reference (0.4, 0.6). KL = 0.7 ln(7/4) + 0.3 ln(1/2) = 0.183786."""
    policy, reference = column(0.7, 0.3).log(), column(0.4, 0.6).log()
    for estimate in (tensors.kl_k1, tensors.kl_k3):
        assert (policy.exp() * estimate(policy, reference)).sum().item() == pytest.approx(0.183786, abs=1e-6)
    assert (tensors.kl_k3(policy, reference) >= 0).all()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),  # unclipped
        (1.5, 2.0, -2.6, 0.0),  # 1.3 * 2: no reward for going further up
        (0.5, 2.0, -1.0, -2.0),  # below, but good: pulled back
        (0.5, -2.0, 1.6, 0.0),  # 0.8 * 2: no reward for going further down
        (1.5, -2.0, 3.0, 2.0),  # above, but bad: pulled back
        (5.0, -2.0, 8.0, 0.0),  # capped at 4
    ],
)
def test_clipped_surrogate_in_each_region(ratio, advantage, loss, gradient):
    """Bounds 0.8 and 1.3, cap 4."""
    point = column(ratio).requires_grad_()
    value = tensors.clipped_surrogate(point, column(advantage), 0.2, 0.3, cap=4.0)
    value.sum().backward()
    assert value.item() == pytest.approx(loss)
    assert point.grad.item() == pytest.approx(gradient)


def test_an_outlying_ratio_stays_finite():
    ratio = tensors.importance_ratio(torch.tensor([0.0, 300.0, -300.0]))
    assert ratio[0] == 1
    assert ratio.isfinite().all()
    assert (ratio * 0 == 0).all()


def test_entropy_by_hand():
    """Even over 4: ln 4. Odds 3 to 1 with an impossible third: 0.562335. Certain: 0. None of it has a gradient."""
    logits = torch.tensor([[1.0] * 4, [math.log(3), 0, -math.inf, -math.inf], [0, *[-math.inf] * 3]], dtype=D)
    entropy = tensors.token_entropy(logits.requires_grad_())
    assert entropy.tolist() == pytest.approx([math.log(4), 0.562335, 0], abs=1e-6)
    assert not entropy.requires_grad


@pytest.mark.parametrize("count", [1, tensors.CACHED_ROWS, 2 * tensors.CACHED_ROWS + 5])
def test_entropy_of_any_number_of_rows(count):
    logits = torch.randn(count, 7, dtype=D, generator=torch.Generator().manual_seed(0))
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(tensors.token_entropy(logits), expected, rtol=1e-12, atol=1e-12)


def test_generalised_jsd_by_hand():
    """Teacher (3/4, 1/4), student (1/4, 3/4), beta 1/4: M = (3/8, 5/8), and 1/4 (3/4 ln 2 + 1/4 ln 2/5) +
    3/4 (1/4 ln 2/3 + 3/4 ln 6/5) = 0.099228; at the ends KL(teacher || student) and KL(student || teacher)."""
    teacher, student = (torch.tensor([one], dtype=D).log() for one in ([0.75, 0.25], [0.25, 0.75]))
    assert tensors.generalised_jsd(student, teacher, 0.25).item() == pytest.approx(0.099228, abs=1e-6)
    assert tensors.generalised_jsd(student, teacher, 0.0).item() == pytest.approx(0.5 * math.log(3))
    far = torch.tensor([[0.5, 0.5]], dtype=D).log()
    assert tensors.generalised_jsd(far, teacher, 0.0).item() == pytest.approx(0.130812, abs=1e-6)  # KL(teacher || far)
    assert tensors.generalised_jsd(far, teacher, 1.0).item() == pytest.approx(0.143841, abs=1e-6)  # 1/2 ln 4/3


@pytest.mark.parametrize("beta", [0.01, 0.5, 0.99])
def test_generalised_jsd_lies_between_zero_and_the_entropy_of_beta(beta):
    """It is the information that a word carries about which of the two gave it: at most that of the choice itself."""
    one, other = (3 * torch.randn(50, 7, generator=torch.Generator().manual_seed(k), dtype=D) for k in (1, 2))
    found = tensors.generalised_jsd(one.log_softmax(-1), other.log_softmax(-1), beta)
    most = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert (found >= 0).all()
    assert (found <= most).all()
    assert tensors.generalised_jsd(one.log_softmax(-1), one.log_softmax(-1), beta).abs().max() < 1e-15


def test_likeliest_tokens_of_the_student():
    """Student (0.1, 0.6, 0.3): the last two, as 2/3 and 1/3, against (0.2, 0.2) of the teacher as halves; or with the
    rest as a third word, which has 0.1 against 0.6."""
    student = torch.tensor([[0.1, 0.6, 0.3]], dtype=D).log() + 4
    teacher = torch.tensor([[0.6, 0.2, 0.2]], dtype=D).log() - 4
    one, other = tensors.likeliest(student, teacher, 2)
    assert one.exp().flatten().tolist() == pytest.approx([2 / 3, 1 / 3])
    assert other.exp().flatten().tolist() == pytest.approx([0.5, 0.5])
    one, other = tensors.likeliest(student, teacher, 2, tail=True)
    assert one.exp().flatten().tolist() == pytest.approx([0.6, 0.3, 0.1])
    assert other.exp().flatten().tolist() == pytest.approx([0.2, 0.2, 0.6])
    for count in (0, 3, 9):
        one, _ = tensors.likeliest(student, teacher, count, tail=True)
        assert one.exp().flatten().tolist() == pytest.approx([0.1, 0.6, 0.3])


def test_the_rest_of_a_certain_student_keeps_its_digits():
    """float32: two words at 0 and the others at -30. The rest is e^-30 of one half, where 1 - 1/2 - 1/2 would be 0."""
    student = torch.tensor([[0.0, 0.0, -30.0, -200.0]])
    one, _ = tensors.likeliest(student, student, 2, tail=True)
    assert one[0, 2].item() == pytest.approx(-30 - math.log(2), rel=1e-6)


def test_returns_to_go_by_hand():
    """From the end with gamma 1/2: 4, 2 + 2 = 4, 1 + 2 = 3; what is masked counts nothing."""
    rewards, mask = torch.tensor([[1.0, 2, 4], [8, 100, 100]], dtype=D), torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    assert tensors.returns_to_go(rewards, mask, 0.5).tolist() == [[3, 4, 4], [8, 0, 0]]
    assert tensors.returns_to_go(rewards, mask, 1.0).tolist() == [[7, 6, 4], [8, 0, 0]]
    assert tensors.returns_to_go(rewards, mask, 0.0).tolist() == [[1, 2, 4], [8, 0, 0]]
