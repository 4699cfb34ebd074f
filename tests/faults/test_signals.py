"""Being asked to stop: the step is finished and saved, nobody is left behind, and resume comes to the same end."""

import os
import signal
import threading

import pytest
import torch
from posttrain import api, hookimpl
from posttrain.errors import CheckpointError
from posttrain_testkit.tiny import count_of_a, tiny_model, tiny_tokenizer
from safetensors.torch import load_file

from ..training.conftest import ROWS
from .test_checkpoints import events, losses, resume


class Sender:
    """Sends this process a signal after a step, more than once if told so."""

    def __init__(self, number: int, step: int = 3, times: int = 1):
        self.number, self.step, self.times = number, step, times

    @hookimpl
    def posttrain_step_done(self, run, step):
        for _ in range(self.times if step == self.step else 0):
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_ends_the_run_after_its_step(train, capsys, number):
    """Saved, event, one line with the command, the handlers of before; the resumed run equals one that went through."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    whole = train("sft", steps=6)
    run = train("sft", steps=6, observers=[Sender(number)])
    assert run.interrupted
    assert not whole.interrupted
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert run.step == 3
    assert [path.name for path in run.directory.checkpoints.iterdir()] == ["step-3"]
    assert not (run.path / "model").exists()
    name = signal.Signals(number).name
    (event,) = events(run.path, "interrupted")
    assert event["message"] == f"interrupted by {name} after step 3 of 6"
    assert event["suggestion"] == f"posttrain resume {run.path}"
    said = [line for line in capsys.readouterr().err.splitlines() if "resume" in line]
    assert said == [f"Interrupted by {name} after step 3 of 6, and saved. Go on with: posttrain resume {run.path}"]
    resume(run.path, progress="quiet")
    assert losses(run.path) == [line["loss"] for line in whole.metrics]
    one, other = (path / "model" / "model.safetensors" for path in (whole.path, run.path))
    assert one.read_bytes() == other.read_bytes()


RUINED = {"save_best": True, "learning_rate": 3.0, "schedule": "constant", "eval_data": ROWS["sft"], "eval_every": 1}


@pytest.mark.parametrize("options", [RUINED, {"ema_decay": 0.5}])
def test_an_interrupted_run_holds_the_weights_of_its_last_step(train, options):
    """Best and averaged weights are for the end of a run."""
    run = train("sft", steps=6, observers=[Sender(signal.SIGTERM)], **options)
    assert (run.interrupted, run.step) == (True, 3)
    saved = load_file(run.directory.checkpoints / "step-3" / "model" / "model.safetensors")
    held = dict(run.model.named_parameters())
    assert saved
    assert all(torch.equal(value, held[name]) for name, value in saved.items())
    assert not events(run.path, "weights-averaged")


def test_a_resumed_run_remembers_its_best_step(train):
    whole = train("sft", steps=6, **RUINED)
    run = train("sft", steps=6, observers=[Sender(signal.SIGTERM)], **RUINED)
    resumed = api.resume(
        run.path, model=tiny_model(), tokenizer=tiny_tokenizer(), data=ROWS["sft"], eval_data=ROWS["sft"]
    )
    assert whole.progress.best["step"] == 0
    assert resumed.progress.best == whole.progress.best
    for one, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_resumed_run_goes_on_with_what_a_method_has_worked_out(train):
    common = {"data": ROWS["dpo"], "batch_size": 4, "steps": 5}
    whole = train("beta-dpo", **common)
    run = train("beta-dpo", observers=[Sender(signal.SIGTERM)], **common)
    resumed = resume(run.path, "dpo", progress="quiet")
    assert whole.compute.state["step"] == 5
    assert resumed.compute.state == whole.compute.state
    assert losses(run.path) == [line["loss"] for line in whole.metrics]


def test_a_resumed_run_goes_on_with_its_value_head(train):
    """A module beside the model, which a checkpoint holds and a saved model does not."""
    online = {"data": ROWS["grpo"], "reward": count_of_a, "max_new_tokens": 4}
    whole = train("ppo", steps=5, **online)
    run = train("ppo", steps=5, observers=[Sender(signal.SIGTERM)], **online)
    api.resume(run.path, model=tiny_model(), tokenizer=tiny_tokenizer(), data=ROWS["grpo"], reward=count_of_a)
    assert losses(run.path) == [line["loss"] for line in whole.metrics]


def test_the_second_ctrl_c_ends_at_once(train, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train("sft", steps=6, save_every=2, observers=[Sender(signal.SIGINT, times=2)])
    (run,) = tmp_path.glob("run-*")
    (event,) = events(run, "interrupted")
    assert event["message"].startswith("ended at once in step 4; what was done since the last checkpoint is done again")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not list(run.glob(".owner*"))
    resume(run, progress="quiet")
    assert len(losses(run)) == 6


def test_a_repeated_sigterm_is_the_same_wish(train):
    run = train("sft", steps=6, observers=[Sender(signal.SIGTERM, times=3)])
    assert (run.interrupted, run.step) == (True, 3)


def test_a_signal_before_the_first_step_saves_the_beginning(train):
    """Nothing was trained, and still resume finds a run."""

    class Early:
        @hookimpl
        def posttrain_run_started(self, run):
            os.kill(os.getpid(), signal.SIGTERM)

    whole = train("sft", steps=3)
    run = train("sft", steps=3, observers=[Early()])
    assert (run.interrupted, run.step) == (True, 0)
    resume(run.path, progress="quiet")
    assert losses(run.path) == [line["loss"] for line in whole.metrics]


def test_a_signal_in_the_last_step_lets_the_run_finish(train):
    run = train("sft", steps=3, observers=[Sender(signal.SIGTERM)])
    assert not run.interrupted
    assert (run.path / "model" / "model.safetensors").is_file()
    with pytest.raises(CheckpointError, match="is complete"):
        resume(run.path)


def test_another_thread_leaves_signals_alone(train):
    """Only the main thread can handle them; elsewhere a run is trained as ever."""
    found = []
    thread = threading.Thread(target=lambda: found.append(train("sft", steps=2)))
    thread.start()
    thread.join()
    assert found[0].step == 2


def test_an_evaluation_is_not_repeated_by_resume(train):
    """The run is killed after its evaluation at step 0: patience is not counted twice."""
    options = {
        "eval_data": ROWS["sft"], "eval_every": 1, "save_best": True, "early_stopping": 2, "steps": 9,
        "learning_rate": 3.0, "schedule": "constant",
    }  # fmt: skip
    whole = train("sft", **options)
    run = train("sft", **options, observers=[Sender(signal.SIGTERM, step=1)])
    resume(run.path, eval_data=ROWS["sft"], progress="quiet")
    assert losses(run.path) == losses(whole.path)
    assert run.directory.evaluations(9) == whole.evaluations
