"""What surrounds the step: held-out rows, evaluations, the best checkpoint, patience, steps that are not taken."""

from types import SimpleNamespace

import pytest
import torch
from posttrain import hookimpl
from posttrain.distributed import single
from posttrain.distributed.replicated import clip_and_step
from posttrain.errors import RunStopped
from posttrain.settings import Settings
from posttrain.training.evaluate import is_better
from posttrain.training.run import Plan, Progress
from posttrain.training.source import Order, count_steps

from .conftest import PROMPTS, ROWS

RUINED = {"learning_rate": 3.0, "schedule": "constant", "eval_data": ROWS["sft"], "eval_every": 1, "steps": 30}


def contents(data) -> list[tuple[int, ...]]:
    """Tokens of each example, to tell rows apart."""
    return sorted(tuple(data[i].sequences["completion"][0].ids.tolist()) for i in range(len(data)))


def test_held_out_rows_leave_the_training_data(train):
    """A quarter of eight rows: two are held out, the other six are trained, none is in both or in neither."""
    run = train("sft", eval_fraction=0.25)
    everything = contents(train("sft").source.data)
    trained, held_out = contents(run.source.data), contents(run.evaluation.data)
    assert (len(trained), len(held_out)) == (6, 2)
    assert not set(trained) & set(held_out)
    assert sorted(trained + held_out) == everything


def test_every_epoch_has_an_order_of_its_own():
    """S9: each holds every row once; the seed decides which order it is, and rows that are not shuffled keep theirs."""

    def rows(shuffle, seed):
        return [row for step in range(8) for row in Order(20, 6, shuffle, seed).at(step)]

    orders = [rows(True, seed) for seed in (0, 1, 0)]
    for found in orders:
        assert sorted(found[:20]) == sorted(found[20:]) == list(range(20))
        assert found[:20] != found[20:] != list(range(20))
    assert orders[0] == orders[2] != orders[1]
    assert rows(False, 0) == [*range(20), *range(20)]


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 5), (2.0, 10), (1.5, 8), (0.1, 1), (0.3, 2)])
def test_a_part_of_an_epoch_is_rounded_up_to_whole_steps(epochs, steps):
    assert count_steps(5, Settings(epochs=epochs).length) == steps
    assert count_steps(5, Settings(epochs=epochs, steps=3).length) == 3


def test_the_seed_decides_which_rows_are_held_out(train):
    held_out = [contents(train("sft", eval_fraction=0.25, steps=1, seed=seed).evaluation.data) for seed in (1, 2, 1)]
    assert held_out[0] == held_out[2] != held_out[1]


def test_a_limit_is_for_the_training_rows_alone(train):
    run = train("sft", limit=3, steps=1, eval_data=ROWS["sft"])
    assert (len(run.source.data), len(run.evaluation.data)) == (3, 8)


def test_eval_batches_counts_batches_not_rows(train):
    """Two batches of two are the first four rows, whatever the batches of the training."""
    common = {"learning_rate": 0.0, "batch_size": 2, "steps": 1}
    few = train("sft", eval_data=ROWS["sft"], eval_batches=2, **common)
    four = train("sft", eval_data=ROWS["sft"][:4], **common)
    two = train("sft", eval_data=ROWS["sft"][:2], **common)
    assert few.evaluations[0]["eval_loss"] == pytest.approx(four.evaluations[0]["eval_loss"], rel=1e-6)
    assert few.evaluations[0]["eval_loss"] != pytest.approx(two.evaluations[0]["eval_loss"], rel=1e-3)


def test_eval_batches_of_an_online_run_count_batches_too(train):
    run = train("grpo", steps=1, eval_data=[{"prompt": p} for p in PROMPTS], eval_batches=2, batch_size=3)
    assert run.evaluation.indices == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("every", "evaluated"), [(None, [0, 3]), (2, [0, 2, 3]), (3, [0, 3]), (5, [0, 3])])
def test_evaluations_at_the_start_every_few_steps_and_at_the_end(train, every, evaluated):
    run = train("sft", steps=3, eval_every=every, eval_data=ROWS["sft"])
    assert [found["step"] for found in run.evaluations] == evaluated


@pytest.mark.parametrize("patience", [1, 2])
def test_patience_ends_after_as_many_evaluations_as_it_says(train, patience):
    """The first evaluation is the best of all; the run ends with the ``patience``-th after it, not one later."""
    run = train("sft", early_stopping=patience, **RUINED)
    first, *others = [found["eval_loss"] for found in run.evaluations]
    assert min(others) > first
    assert len(others) == patience
    assert run.step == patience


@pytest.mark.parametrize(
    ("metric", "values", "best", "since"),
    [
        ("eval_loss", [3.0, 2.0, 2.0, 2.5], (2.0, 1), 2),
        ("-eval_reward", [1.0, 0.5, 4.0, 4.0], (4.0, 2), 1),
        ("eval_loss", [float("nan"), 5.0, float("nan")], (5.0, 1), 1),
        ("-eval_reward", [float("nan"), -5.0, float("inf")], (-5.0, 1), 1),
    ],
)
def test_the_books_of_the_best_metric(metric, values, best, since):
    """An equal value is no improvement, and what is not a number is never the best."""
    card = SimpleNamespace(online=False)
    plan, progress = Plan(Settings(best_metric=metric), SimpleNamespace(card=card), None), Progress()
    for step, value in enumerate(values):
        progress.step = step
        assert is_better(plan, progress, {metric.removeprefix("-"): value}) == (progress.best["step"] == step)
    assert (progress.best["value"], progress.best["step"], progress.best["since"]) == (*best, since)


def test_the_best_step_in_the_middle_of_a_run_is_saved_when_it_comes(train):
    """Three steps improve the model and the others ruin it: its weights are those of the third, which stay saved."""

    class Ruiner:
        @hookimpl
        def posttrain_step_done(self, run, step):
            if step == 3:
                self.best = [p.detach().clone() for p in run.policy.parameters()]
            if step == 2:  # the rate of the third step is set already
                run.compute.schedule.base_lrs = [3.0] * len(run.compute.schedule.base_lrs)

    ruiner = Ruiner()
    common = {"steps": 5, "schedule": "constant", "eval_data": ROWS["sft"], "eval_every": 1}
    run = train("sft", save_best=True, save_total=1, observers=[ruiner], **common)
    losses = [found["eval_loss"] for found in run.evaluations]
    assert min(losses) == losses[3]
    assert run.progress.best["step"] == 3
    assert all(torch.equal(one, other) for one, other in zip(run.policy.parameters(), ruiner.best, strict=True))
    assert sorted(path.name for path in run.directory.checkpoints.iterdir()) == ["step-3", "step-5"]


def test_an_evaluation_leaves_what_a_method_has_worked_out(train):
    """beta-dpo draws rows by moving averages over its batches: they are those of the training, evaluated or not."""
    common = {"data": ROWS["dpo"], "batch_size": 4, "steps": 4}
    plain = train("beta-dpo", **common)
    other = train("beta-dpo", eval_data=ROWS["dpo"][:5], eval_every=1, **common)
    assert plain.compute.state["step"] == other.compute.state["step"] == 4
    assert plain.compute.state == other.compute.state
    assert [line["loss"] for line in plain.metrics] == [line["loss"] for line in other.metrics]


@pytest.mark.parametrize("limit", [0.0, 1.0])
@pytest.mark.parametrize(
    ("norm", "finite", "steps"),
    [(float("nan"), True, 0), (float("inf"), True, 0), (2.0, False, 0), (2.0, True, 1)],
)
def test_a_step_that_is_not_finite_is_not_applied(limit, norm, finite, steps):
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    weight.grad = torch.tensor([2.0, 0.0])
    optimizer = torch.optim.SGD([weight], lr=0.5)
    assert clip_and_step(optimizer, [weight], norm, limit, finite) == norm or norm != norm
    scale = (limit / (2.0 + 1e-6) if limit else 1.0) * steps
    torch.testing.assert_close(weight.data, torch.tensor([1.0 - 0.5 * 2.0 * scale, 2.0]))


def test_a_gradient_that_is_not_finite_leaves_the_weights(train, monkeypatch):
    """The loss is a number and the norm is not: the run stops with the weights of the step before."""
    real, norms = single.norm_of, iter([1.0, float("inf")])
    monkeypatch.setattr(single, "norm_of", lambda gradients: real(gradients) * next(norms))

    class Watcher:
        def __init__(self):
            self.seen = {}

        @hookimpl
        def posttrain_step_done(self, run, step):
            self.seen[step] = [p.detach().clone() for p in run.policy.parameters()]

        @hookimpl
        def posttrain_alert(self, run, event):
            self.seen["alert"] = [p.detach().clone() for p in run.policy.parameters()]

    watcher = Watcher()
    with pytest.raises(RunStopped, match="grad_norm is inf at step 2; the step was not applied"):
        train("sft", observers=[watcher], steps=4)
    assert all(torch.equal(one, other) for one, other in zip(watcher.seen[1], watcher.seen["alert"], strict=True))
