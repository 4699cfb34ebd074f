import pytest
import torch
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig


def side(log_ratios, turns):
    """A conversation of the policy, whose reference has log-probs of 0: one token for each number."""
    logps = torch.tensor([log_ratios], dtype=torch.float64)
    return View(logps, torch.ones_like(logps, dtype=torch.bool), turn=torch.tensor([turns]))


def zeros(view):
    return View(torch.zeros_like(view.logps), view.mask)


def margin(call_loss, chosen, rejected, **options):
    policy = Views(chosen=chosen, rejected=rejected)
    loss, metrics = call_loss(policy, Views(chosen=zeros(chosen), rejected=zeros(rejected)), beta=1.0, **options)
    assert loss.tolist() == pytest.approx([-logsig(metrics["margin"].item())])
    return metrics["margin"].item(), metrics["turns"].item()


def test_later_turns_count_less(call_loss):
    """Gamma 1/2. Of two turns: 1 and 1/2 * (1 - 1/2) / (1 - 1/4) = 1/3; of three the second 1/2 * (1 - 1/4) / (7/8) =
    3/7 and the third 1/4 * (1/2) / (7/8) = 1/7. Chosen: 0.3 + 0.3 + 0.6 / 3 = 0.8; rejected: 0.7 * 3/7 + 0.7/7 = 0.4.
    """
    chosen, rejected = side([0.3, 0.3, 0.6], [0, 0, 1]), side([0.0, 0.7, 0.7], [0, 1, 2])
    assert margin(call_loss, chosen, rejected, gamma=0.5) == pytest.approx((0.4, 2.5))


def test_without_a_discount_weights_fall_in_equal_steps(call_loss):
    """1 and 1/2 of two turns; 1, 2/3 and 1/3 of three."""
    chosen, rejected = side([0.2, 0.6], [0, 1]), side([0.1, 0.3, 0.3], [0, 1, 2])
    assert margin(call_loss, chosen, rejected, gamma=1.0)[0] == pytest.approx(0.5 - 0.4)


def test_one_turn_is_dpo(call_loss):
    assert call_loss(POLICY, REFERENCE)[0].tolist() == pytest.approx([-logsig(0.15), -logsig(-0.075)])


def test_a_discount_of_nothing_is_refused(method):
    from posttrain.errors import SettingsError

    with pytest.raises(SettingsError, match=r"gamma is 0\.0, expected a number above 0 and up to 1"):
        method.config({"gamma": 0.0})


def test_turns_are_those_of_the_conversations(tmp_path, method):
    """A run on conversations of two turns and of one: the log says so, and the loss begins at ln 2."""
    from posttrain import api
    from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

    def says(*texts):
        roles = ("assistant", "user")
        return [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]

    rows = [
        {"prompt": [{"role": "user", "content": "ab"}], "chosen": says("ad", "b", "a"), "rejected": says("h")}
        for _ in range(4)
    ]
    run = api.train(
        method,
        model=tiny_model(),
        tokenizer=tiny_tokenizer(),
        data=rows,
        steps=2,
        batch_size=2,
        progress="quiet",
        cache="off",
        device="cpu",
        output=str(tmp_path / "run"),
    )
    assert run.metrics[0]["turns"] == 1.5
    assert run.metrics[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
