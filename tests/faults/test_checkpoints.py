"""Checkpoints that are cut, damaged or not finite, disks that are full, and files of earlier versions."""

import errno
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from posttrain import api
from posttrain.errors import CheckpointError, RunFailed, RunStopped
from posttrain.runs import durable, manifest
from posttrain.runs.checkpoints import find_checkpoints, latest_checkpoint
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file

from ..training.conftest import ROWS

KEPT = {"save_every": 2, "save_total": 9, "steps": 6}


def resume(path: Path, method: str = "sft", **changes):
    """Continue a run of the fixture ``train``."""
    return api.resume(path, model=tiny_model(), tokenizer=tiny_tokenizer(), data=ROWS[method], **changes)


def losses(path: Path) -> list[float]:
    """Read the loss series of a run."""
    return [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]


def events(path: Path, code: str) -> list[dict]:
    """Read a run's events of one kind."""
    found = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    return [event for event in found if event["code"] == code]


def cut(file: Path) -> None:
    """Lose the second half of a file."""
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def empty(file: Path) -> None:
    """Lose all of a file."""
    file.write_bytes(b"")


def flip(file: Path) -> None:
    """Turn one bit over."""
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(bytes(data))


def poison(file: Path) -> None:
    """Put a NaN into the last tensor."""
    tensors = load_file(file)
    tensors[max(tensors)].view(-1)[0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})


FAULTS = [
    ("model/model.safetensors", cut, True, r"model/model.safetensors has \d+ bytes instead of \d+"),
    ("model/model.safetensors", empty, True, r"model/model.safetensors has 0 bytes instead of \d+"),
    ("model/model.safetensors", flip, True, "model/model.safetensors differs from its checksum"),
    ("optimizer.pt", flip, True, "optimizer.pt differs from its checksum"),
    ("training.pt", Path.unlink, True, "training.pt is missing"),
    ("manifest.json", cut, True, "manifest.json is damaged"),
    ("model/model.safetensors", poison, False, "its weights are not finite, first model.norm.weight"),
    ("model/model.safetensors", cut, False, "model/model.safetensors is cut or damaged"),
    ("training.pt", empty, False, "training.pt is cut or damaged"),
    ("optimizer.pt", cut, False, "optimizer.pt is cut or damaged"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with checkpoints at steps 2, 4 and 6, that nobody disturbed."""
    call = train_into(tmp_path_factory.mktemp("whole"))
    return call("sft", **KEPT).path


def train_into(folder: Path):
    """Give the function behind the fixture ``train`` for a folder of one's own."""
    from ..training import conftest

    return conftest.train.__wrapped__(folder)


@pytest.mark.parametrize(("name", "damage", "listed", "why"), FAULTS)
def test_a_damaged_checkpoint_is_passed_over(whole, tmp_path, capsys, name, damage, listed, why):
    """Resume goes on from the one before, says which and why, and comes to the same weights in every bit."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    if not listed:  # as earlier versions wrote them
        for file in run.glob("checkpoints/*/manifest.json"):
            file.unlink()
    expected = losses(run)
    damage(run / "checkpoints" / "step-6" / name)
    resume(run, progress="quiet")
    assert losses(run) == expected
    (event,) = events(run, "checkpoint-damaged")
    assert event["message"].startswith(f"Checkpoint '{run}/checkpoints/step-6' is passed over: ")
    assert re.search(why, event["message"])
    assert event["evidence"] == {"resumed": "step-4"}
    assert (run / "checkpoints" / "step-6.damaged").is_dir()
    one, other = (load_file(p / "model" / "model.safetensors") for p in (whole, run))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_no_good_checkpoint_is_one_line_with_all_reasons(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for step in (2, 4, 6):
        cut(run / "checkpoints" / f"step-{step}" / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"has no good checkpoint: step-6: optimizer.pt has .*; step-4: .*step-2"):
        resume(run)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-2", "step-4", "step-6"]


def test_the_newest_good_checkpoint_is_what_others_read(whole, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    empty(run / "checkpoints" / "step-6" / "model" / "model.safetensors")
    assert latest_checkpoint(run).name == "step-4"
    assert "step-6' is passed over: model/model.safetensors has 0 bytes" in capsys.readouterr().err


def ruin(run, **_):
    """Make two weights of the policy infinite or no number."""
    with torch.no_grad():
        weights = dict(run.policy.named_parameters())
        weights["model.model.layers.0.mlp.up_proj.weight"].view(-1)[5] = float("inf")
        weights["model.model.norm.weight"].view(-1)[0] = float("nan")


class Ruiner:
    """Ruins the weights after a step, as an update that overflows does."""

    def __init__(self, step: int):
        self.step = step

    from posttrain import hookimpl

    @hookimpl
    def posttrain_step_done(self, run, step):
        if step == self.step:
            ruin(run)


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    """Not of their names: step-9 comes before step-10. What is incomplete or set aside is none."""
    for name in ("step-9", "step-100", "step-10", "step-200.damaged", ".step-300.tmp", "step-400"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        if name != "step-400":
            (tmp_path / "checkpoints" / name / "state.json").write_text("{}")
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-100", "step-10", "step-9"]


@pytest.mark.parametrize(("step", "good"), [(2, None), (4, "step-2"), (6, "step-4")])
def test_weights_that_are_not_finite_are_never_saved(train, step, good):
    """At a checkpoint and in the last step: step, tensors and the last good checkpoint are named, exit code 3."""
    with pytest.raises(RunStopped, match=rf"2 trained tensors are not finite after step {step}") as caught:
        train("sft", **KEPT, observers=[Ruiner(step)])
    text, run = str(caught.value), caught.value
    assert "model.layers.0.mlp.up_proj.weight, model.norm.weight; they were not saved." in text
    assert ("There is no checkpoint before it" if good is None else f"checkpoints/{good}'") in text
    assert text.endswith("Lower --learning-rate or --weight-decay.")
    assert run.exit_code == 3


def test_weights_that_a_last_update_ruins_make_no_model(train, tmp_path):
    """The norm is finite and the update is not: a weight decay of 1e30 in the one step there is."""
    with pytest.raises(RunStopped, match="not finite after step 1"):
        train("sft", steps=1, weight_decay=1e30, learning_rate=1e10, warmup_steps=0, schedule="constant")
    (run,) = tmp_path.glob("run-*")
    assert not (run / "model").exists()
    assert not list(run.glob("checkpoints/*"))
    assert not events(run, "finished")
    assert events(run, "nonfinite-weights")[0]["evidence"]["step"] == 1


@pytest.mark.parametrize(
    ("place", "error", "said"),
    [
        ("torch", OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (
            "torch",
            RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/0: file write failed"),
            "Py",
        ),
        ("flush", OSError(errno.EROFS, "Read-only file system"), "Read-only file system"),
        ("append", OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
    ],
)
def test_a_disk_that_takes_no_more_is_one_line(train, tmp_path, monkeypatch, place, error, said):
    """The checkpoint before stays usable, is named, and leads to the run that nobody disturbed."""
    expected = train("sft", **KEPT).metrics
    calls = iter(range(1000))

    def refuse(after, real):
        def call(*arguments, **keywords):
            if (place != "append" or arguments[0].name == "metrics.jsonl") and next(calls) >= after:
                raise error
            return real(*arguments, **keywords)

        return call

    with monkeypatch.context() as broken:
        if place == "torch":
            broken.setattr(torch, "save", refuse(3, torch.save))
        elif place == "flush":
            broken.setattr(durable, "flush_tree", refuse(1, durable.flush_tree))
        else:
            broken.setattr(Path, "open", refuse(4, Path.open))
        with pytest.raises(RunFailed, match=said) as caught:
            train("sft", **KEPT)
    run = tmp_path / "run-1"
    assert str(caught.value).endswith(f"go on with: posttrain resume {run}")
    if place != "append":
        assert f"The last good checkpoint is '{run}/checkpoints/step-2'." in str(caught.value)
    assert not list(run.glob("checkpoints/.*"))
    resume(run, progress="quiet")
    assert losses(run) == [line["loss"] for line in expected]


def test_the_best_checkpoint_is_kept_when_others_are_pruned(train):
    """A learning rate that ruins the model: step 0 is the best of all, and ``save_total`` is 1."""
    run = train("sft", eval_data=ROWS["sft"], eval_every=1, save_best=True, save_every=1, save_total=1, steps=4,
                learning_rate=3.0, schedule="constant")  # fmt: skip
    assert run.progress.best["step"] == 0
    assert sorted(path.name for path in run.directory.checkpoints.iterdir()) == ["step-0", "step-4"]


def test_old_checkpoints_go_and_no_more(train):
    run = train("sft", save_every=1, save_total=2, steps=4)
    assert sorted(path.name for path in run.directory.checkpoints.iterdir()) == ["step-3", "step-4"]


def test_a_final_save_that_was_cut_off_is_finished_by_resume(train, monkeypatch):
    """The last checkpoint is there and the model is not: no step is taken again, and the model comes."""
    from posttrain import api as module

    whole = train("sft", **KEPT)

    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    with monkeypatch.context() as broken:
        broken.setattr(module, "write_model_card", die)
        with pytest.raises(Killed):
            train("sft", **KEPT)
    run = whole.path.with_name("run-1")
    assert not (run / "model").exists()
    resume(run, progress="quiet")
    assert (run / "model" / "model.safetensors").read_bytes() == (
        whole.path / "model" / "model.safetensors"
    ).read_bytes()
    assert losses(run) == losses(whole.path)
    with pytest.raises(CheckpointError, match=r"is complete: step 6 of 6. To go on: --steps N"):
        resume(run)


def test_a_kill_while_files_are_cut_back_loses_no_line(train, monkeypatch):
    """The history is whole before and after, whatever moment the kill comes at."""
    path = train("sft", **KEPT).path
    before = (path / "metrics.jsonl").read_text()
    shutil.rmtree(path / "checkpoints" / "step-6")

    def die(*_):
        raise InterruptedError("killed")

    with monkeypatch.context() as broken:
        broken.setattr(durable.os, "replace", die)
        with pytest.raises(InterruptedError):
            resume(path)
    assert (path / "metrics.jsonl").read_text() == before


def test_a_torn_last_line_is_no_line(train):
    path = train("sft", **KEPT).path
    for name in ("metrics.jsonl", "events.jsonl"):
        with (path / name).open("a") as file:
            file.write('{"step": 7, "lo')
    shutil.rmtree(path / "model")
    resume(path, progress="quiet")
    assert len(losses(path)) == 6
    assert events(path, "started")[-1]["message"] == "resumed after step 6 of 6"


def test_a_random_state_of_other_ranks_is_said(whole, tmp_path, capsys):
    """Two processes saved, one goes on: its dropout draws other numbers, which is no secret."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    newest = run / "checkpoints" / "step-6"
    state = torch.load(newest / "training.pt", weights_only=True)
    torch.save(state | {"random": state["random"] * 2}, newest / "training.pt")
    manifest.write_manifest(newest)
    resume(run, progress="bar", steps=7)
    assert "The checkpoint holds the random state of 2 processes and this run has 1: dropout draws other" in (
        capsys.readouterr().err
    )


def test_the_digest_of_a_checkpoint_costs_less_than_writing_it(tmp_path):
    (tmp_path / "big").write_bytes(bytes(2**22))
    manifest.write_manifest(tmp_path)
    facts = json.loads((tmp_path / "manifest.json").read_text())
    assert facts["digest"] == "sha256"
    assert facts["files"]["big"] == {
        "bytes": 2**22,
        "digest": "bb9f8df61474d25e71fa00722318cd387396ca1736605e1248821cc0de3d3af8",
    }
    assert manifest.find_damage(tmp_path) is None
