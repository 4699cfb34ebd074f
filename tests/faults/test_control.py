"""A run that is asked from outside: it stops saved, it saves and goes on, and nobody who is not running is asked."""

import json

from posttrain import hookimpl
from posttrain.cli.main import main
from posttrain.runs.control import CHECKPOINT, CONTROL, STOP, ask
from posttrain.training.asked import WORTH, SaveClock

from .test_checkpoints import events, losses, resume


class Asks:
    """Gives a command about its own run after a step, as another terminal would."""

    def __init__(self, command: str, step: int = 2):
        self.command, self.step = command, step

    @hookimpl
    def posttrain_step_done(self, run, step):
        if step == self.step:
            assert main([self.command, str(run.path)]) == 0


def test_stop_ends_a_run_as_a_signal_does(train, capsys):
    """Saved after its step, interrupted, one line each for who asks and who is asked; resume comes to the same end."""
    whole = train("sft", steps=5)
    run = train("sft", steps=5, observers=[Asks("stop")])
    assert (run.interrupted, run.step) == (True, 2)
    assert [path.name for path in run.directory.checkpoints.iterdir()] == ["step-2"]
    out, err = capsys.readouterr()
    assert "stops after its step, saved." in out
    assert f"Interrupted by posttrain stop after step 2 of 5, and saved. Go on with: posttrain resume {run.path}" in err
    resume(run.path, progress="quiet")
    assert losses(run.path) == [line["loss"] for line in whole.metrics]


def test_checkpoint_saves_and_goes_on(train):
    run = train("sft", steps=5, save_total=9, observers=[Asks("checkpoint")])
    assert not run.interrupted
    assert sorted(path.name for path in run.directory.checkpoints.iterdir()) == ["step-2", "step-5"]
    assert not [name for name in CONTROL if (run.path / name).exists()]


def test_a_run_that_is_over_is_not_asked(train, capsys, tmp_path):
    run = train("sft", steps=1)
    assert main(["stop", str(run.path)]) == 2
    assert f"is not running. What became of it: posttrain status {run.path}" in capsys.readouterr().err
    assert main(["checkpoint", str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err


def test_a_wish_that_was_left_behind_does_not_bind_the_next_start(train):
    """A run that was killed before it heard goes on as a whole when it is resumed."""
    run = train("sft", steps=4, observers=[Asks("stop")])
    (run.path / CONTROL[0]).touch()
    assert resume(run.path, progress="quiet").step == 4


def test_an_owner_on_another_host_is_asked_all_the_same(train):
    """Whether it lives cannot be seen; the folder is what both share."""
    run = train("sft", steps=1)
    record = {"host": "elsewhere", "process": 7, "started": "then", "job": None}
    (run.path / ".owner.json").write_text(json.dumps(record))
    assert ask(run.path, STOP).endswith("(process 7 on elsewhere) stops after its step, saved.")
    assert ask(run.path, CHECKPOINT).endswith("saves a checkpoint after its step.")


def test_resume_says_where_it_goes_on(train, capsys):
    run = train("sft", steps=4, observers=[Asks("stop")])
    resume(run.path, progress="bar")
    assert f"resumed after step 2 of 4, from checkpoint '{run.path}/checkpoints/step-2'" in capsys.readouterr().err
    assert events(run.path, "started")[1]["message"] == "resumed after step 2 of 4"


def test_checkpoints_by_time(train):
    """Every step is late where the interval is shorter than one; without it only the end is saved."""
    run = train("sft", steps=3, save_minutes=1e-9, save_total=9)
    steps = sorted(path.name for path in run.directory.checkpoints.iterdir())
    assert steps[-1] == "step-3"
    assert len(events(run.path, "checkpoint")) >= 1
    run = train("sft", steps=3, save_minutes=0)
    assert [path.name for path in run.directory.checkpoints.iterdir()] == ["step-3"]


def test_the_clock_waits_longer_where_saving_is_slow(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("posttrain.training.asked.time.monotonic", lambda: now[0])
    clock = SaveClock.of(1.0)
    clock.last = now[0]
    now[0] += 59
    assert not clock.is_due()
    now[0] += 2
    assert clock.is_due()
    clock.saved(now[0] - 10)  # writing it took ten seconds
    now[0] += 10 * WORTH - 1
    assert not clock.is_due()
    now[0] += 2
    assert clock.is_due()
    assert not SaveClock.of(None).is_due()
