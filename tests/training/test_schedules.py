"""Learning rates: transformers' schedules at points worked out by hand, and groups with rates of their own."""

import json
import math
import warnings

import pytest
import torch
from posttrain import api, hookimpl
from posttrain.errors import SettingsError
from posttrain.settings import Settings
from posttrain.training.optim import build_optimizer
from posttrain.training.schedule import advance, build_schedule
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer
from torch import nn
from transformers import get_scheduler

from .conftest import ROWS


def rates(total=10, **options):
    """The learning rate of each step of a run."""
    settings = Settings(**{"learning_rate": 0.1} | options)
    settings.check()
    optimizer = build_optimizer(nn.Linear(2, 2), settings.optim)
    schedule = build_schedule(optimizer, settings.optim, total)
    found = []
    for _ in range(total + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("warmup", [0, 3, 10, 12])
@pytest.mark.parametrize("name", ["constant", "constant_with_warmup", "linear", "cosine"])
def test_common_schedules_are_those_of_transformers_to_the_bit(name, warmup):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    wanted = get_scheduler("constant_with_warmup" if name == "constant" else name, optimizer, warmup, 10)
    found = rates(schedule=name, warmup_steps=warmup)
    for rate in found:
        assert rate == optimizer.param_groups[0]["lr"]
        optimizer.step()
        wanted.step()


@pytest.mark.parametrize(
    ("options", "points"),
    [
        ({"schedule": "constant"}, {0: 0.1, 10: 0.1}),
        ({"schedule": "constant", "warmup_steps": 4}, {0: 0, 1: 0.025, 4: 0.1, 10: 0.1}),
        ({"schedule": "constant_with_warmup", "warmup_ratio": 0.2}, {1: 0.05, 2: 0.1, 10: 0.1}),
        ({"schedule": "linear"}, {0: 0.1, 5: 0.05, 10: 0}),
        ({"schedule": "linear", "warmup_ratio": 0.2}, {1: 0.05, 2: 0.1, 6: 0.05, 10: 0}),
        ({"schedule": "linear", "min_learning_rate": 0.02}, {0: 0.1, 5: 0.06, 10: 0.02}),
        ({"learning_rate": 1e-5, "min_learning_rate": 2e-6}, {0: 1e-5, 5: 6e-6, 10: 2e-6}),
        ({"schedule": "cosine"}, {0: 0.1, 5: 0.05, 10: 0}),
        ({"schedule": "cosine", "min_learning_rate": 0.02}, {0: 0.1, 5: 0.06, 10: 0.02}),
        ({"schedule": "cosine_with_min_lr", "min_learning_rate": 0.04}, {5: 0.07, 10: 0.04}),
        ({"schedule": "cosine_with_restarts", "schedule_options": {"num_cycles": "2"}}, {4: 0.1 * 0.0954915, 5: 0.1}),
        ({"schedule": "polynomial", "schedule_options": {"power": "2"}}, {5: 0.025, 10: 0}),
        ({"schedule": "inverse_sqrt", "warmup_steps": 4}, {2: 0.05, 4: 0.1, 10: 0.1 * math.sqrt(4 / 10)}),
        ({"schedule": "warmup_stable_decay", "warmup_steps": 2}, {1: 0.05, 2: 0.1, 8: 0.1, 9: 0.05, 10: 0}),
        (
            {
                "schedule": "warmup_stable_decay",
                "min_learning_rate": 0.02,
                "schedule_options": {"num_decay_steps": "4", "decay_type": "linear"},
            },
            {6: 0.1, 8: 0.06, 10: 0.02},
        ),
    ],
)
def test_rates_at_some_steps(options, points):
    found = rates(**options)
    for step, rate in points.items():
        assert found[step] == pytest.approx(rate, rel=1e-5, abs=1e-9), step


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"warmup_ratio": 1.0}, "warmup-ratio is 1, expected a number from 0 to below 1."),
        ({"warmup_ratio": 0.1, "warmup_steps": 3}, "warmup-ratio and warmup-steps say the same thing."),
        ({"min_learning_rate": 0.2}, "min-learning-rate 0.2 is above the learning-rate 0.1, from which it falls."),
        ({"schedule": "inverse_sqrt", "min_learning_rate": 0.01}, "schedule inverse_sqrt has no min-learning-rate."),
        ({"schedule": "cosine_with_min_lr"}, "falls to a rate that is not given: --min-learning-rate"),
        ({"lora_plus_ratio": 0.0}, "lora-plus-ratio is 0, expected a number above 0."),
        ({"schedule": "polynomial", "schedule_options": {"powr": "2"}}, "schedule-options do not fit schedule polynom"),
    ],
)
def test_schedules_that_there_are_not(options, says):
    with pytest.raises(SettingsError) as raised:
        rates(**options)
    assert says in str(raised.value)


def test_parameters_learn_at_the_rates_of_their_kind(train):
    """By the sign of the first step of Adam every number moves by about its learning rate."""
    options = {"steps": 1, "schedule": "constant", "learning_rate": 1e-3}
    run = train("sft", embedding_learning_rate=3e-3, head_learning_rate=7e-3, **options)
    still = train("sft", **options | {"learning_rate": 0.0}).model.state_dict()
    moved = {name: float((value - still[name]).abs().max()) for name, value in run.model.state_dict().items()}
    assert moved["model.embed_tokens.weight"] == pytest.approx(3e-3, rel=1e-2)
    assert moved["lm_head.weight"] == pytest.approx(7e-3, rel=1e-2)
    assert moved["model.layers.0.mlp.up_proj.weight"] == pytest.approx(1e-3, rel=1e-2)
    assert moved["model.norm.weight"] == pytest.approx(1e-3, rel=1e-2)
    assert json.loads((run.path / "run.json").read_text())["settings"]["head_learning_rate"] == 7e-3


def test_the_second_factors_of_an_adapter_learn_faster(train):
    """They begin at zero, so that after the first step they are the step itself."""
    run = train("sft", lora=True, lora_plus_ratio=16.0, steps=1, schedule="constant", learning_rate=1e-4)
    factors = [p.abs().max().item() for n, p in run.model.named_parameters() if ".lora_B." in n]
    assert all(value == pytest.approx(16e-4, rel=1e-2) for value in factors)


def test_rates_go_on_in_a_resumed_run(train, tmp_path):
    options = {"steps": 4, "schedule": "cosine", "min_learning_rate": 1e-3, "head_learning_rate": 5e-2}
    whole = train("sft", **options)
    first = train("sft", save_every=2, observers=[StopAfter(2)], **options)
    assert first.interrupted
    rest = api.resume(first.path, model=tiny_model(), tokenizer=tiny_tokenizer(), data=ROWS["sft"])
    assert [line["loss"] for line in rest.metrics] == pytest.approx([line["loss"] for line in whole.metrics], abs=1e-6)
    heads = [torch.as_tensor(run.model.state_dict()["lm_head.weight"]) for run in (whole, rest)]
    assert (heads[0] - heads[1]).abs().max() < 1e-6


class StopAfter:
    """Asks a run to stop after a step, as Ctrl-C does."""

    def __init__(self, step):
        self.step = step

    @hookimpl
    def posttrain_step_done(self, run, step):
        """Look at the step's number."""
        if step == self.step:
            run.interrupt.signal = "SIGINT"


def test_a_first_step_that_is_skipped_moves_the_schedule_without_a_warning():
    settings = Settings(learning_rate=0.1, schedule="linear").optim
    for applied in (False, True):
        optimizer = build_optimizer(nn.Linear(2, 2), settings)
        schedule = build_schedule(optimizer, settings, 10)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            advance(schedule, applied)
        assert len(said) == applied  # torch does warn of an optimiser that has not moved
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.09)
