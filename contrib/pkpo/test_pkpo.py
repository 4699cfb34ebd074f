import itertools
import math

import pytest
from posttrain_testkit.by_hand import MASK, NEW, WORTH, tensor


def brute(values, k, minus_one):
    """Every set of k."""
    found = []
    for i in range(len(values)):
        sets = [one for one in itertools.combinations(range(len(values)), k) if i in one]
        gains = [max(values[j] for j in one) - minus_one * max(values[j] for j in one if j != i) for one in sets]
        found.append(sum(gains) / math.comb(len(values), k))
    return found


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("baseline", ["none", "loo_minus_one"])
def test_new_rewards_equal_all_sets(advantages_of, k, baseline):
    values = [0.3, -1.0, 2.0, 0.3, 1.1]
    found, columns = advantages_of(values, [0] * 5, options={"k": k, "baseline": baseline})
    assert found.tolist() == pytest.approx(brute(values, k, baseline == "loo_minus_one"))
    sets = list(itertools.combinations(values, k))
    assert columns["best_of_k"].tolist() == pytest.approx([sum(map(max, sets)) / len(sets)] * 5)


def test_baselines(advantages_of):
    """Equal rewards teach nothing; k 1 is RLOO divided by n: (1 - 0) / 2 and so on; lone answers have no baseline."""
    assert advantages_of([0.1] * 4, [0] * 4, options={"k": 2})[0].tolist() == pytest.approx([0] * 4, abs=1e-12)
    for baseline in ("loo", "loo_minus_one"):
        found, _ = advantages_of([1, 0], [0, 0], options={"k": 1, "baseline": baseline})
        assert found.tolist() == pytest.approx([0.5, -0.5])
    assert advantages_of([1, 0], [0, 1], options={"k": 1})[0].tolist() == [0, 0]


def test_the_mean_is_over_prompts(completion_loss):
    """Two answers of one prompt: the mean over examples of twice each is the sum over the prompt."""
    loss, _ = completion_loss(NEW, WORTH, MASK, answers=tensor(2.0, 2.0), best_of_k=WORTH)
    assert loss.tolist() == pytest.approx([12 - 4 * math.log(1.5), 2 * (-0.5 - math.log(2))])
