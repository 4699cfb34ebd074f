"""Old names of the contract work for one more while, and say what has replaced them."""

import pytest
import torch
from posttrain.contract.planning import SampleRequest
from posttrain.contract.views import View


@pytest.mark.parametrize(("old", "want"), [("total", [3.0, 3.0]), ("average", [1.5, 3.0])])
def test_a_view_sums_and_averages_under_the_old_names(old, want):
    view = View(torch.zeros(2, 2), torch.tensor([[True, True], [True, False]]))
    with pytest.warns(DeprecationWarning, match=f"View.{old} is deprecated since posttrain 0.2 and goes in 1.0"):
        assert getattr(view, old)(torch.tensor([[1.0, 2.0], [3.0, 9.0]])).tolist() == want


@pytest.mark.parametrize(("old", "new"), [("reward_as", "baseline_column"), ("compared_as", "opponent_column")])
def test_a_request_takes_its_columns_under_the_old_names(old, new):
    with pytest.warns(DeprecationWarning, match=f"Use {new}") as warned:
        request = SampleRequest(1, greedy=True, **{old: "base"})
    assert warned[0].filename == __file__
    assert request == SampleRequest(1, greedy=True, **{new: "base"})
