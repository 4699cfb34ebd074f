"""Log-probs of a frozen reference are computed once, found again by content, and change no number of a run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from posttrain import api
from posttrain.contract.pad import sequences_of
from posttrain.contract.views import Sequence
from posttrain.models import reference_cache as reference_cache_module
from posttrain.models.reference import Reference
from posttrain.models.reference_cache import ReferenceCache
from posttrain.network.token_model import TokenModel
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer
from safetensors.torch import load_file

from .conftest import ROWS

JUDGED = [
    {"prompt": row["prompt"], "completion": row["chosen" if place % 2 else "rejected"], "label": bool(place % 2)}
    for place, row in enumerate(ROWS["dpo"])
]


def save(folder: Path, seed: int | None = None) -> Path:
    model = tiny_model()
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def model(tmp_path) -> Path:
    return save(tmp_path / "tiny")


@pytest.fixture
def train(tmp_path, model):
    """DPO with weights from a folder and a cache on disk; two epochs of three steps."""
    numbers = iter(range(100))

    def call(method="dpo", **keywords):
        defaults = {"model": str(model), "data": JUDGED if method == "kto" else ROWS["dpo"], "batch_size": 3}
        defaults |= {"verify_saved": False}  # some tests have the passes lie
        defaults |= {"epochs": 2.0, "learning_rate": 1e-2, "progress": "quiet", "device": "cpu"}
        defaults |= {"cache": str(tmp_path / "cache"), "output": str(tmp_path / f"run-{next(numbers)}")}
        return api.train(method, **(defaults | keywords))

    return call


def series(run) -> list[tuple[float, float]]:
    return [(line["loss"], line["grad_norm"]) for line in run.metrics]


def notes(run) -> list[str]:
    found = json.loads((run.path / "run.json").read_text())["notes"]
    return [note for note in found if note.startswith("reference log-probs")]


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "reference").glob("*/*.safetensors"))


def unknown(sequences):
    raise AssertionError(f"{len(sequences)} sequences are not in the cache")


def by_transformers(module, sequence: Sequence) -> torch.Tensor:
    """Log-probs of the trained tokens of one row alone, without anything of the core."""
    with torch.no_grad():
        logps = module(input_ids=sequence.ids[None]).logits[0, :-1].log_softmax(-1)  # (L-1, V)
    return logps.gather(1, sequence.ids[1:, None])[:, 0][sequence.trained[1:]]


@pytest.fixture
def noise(monkeypatch):
    """Make every pass without gradient depend on the neighbours far more than rounding does."""
    real = TokenModel.forward

    def noisy(self, sequences, request):
        results = real(self, sequences, request)
        if not torch.is_grad_enabled() and not self.training:
            results["logps"] = results["logps"] + 0.01 * torch.arange(len(results["logps"]))
        return results

    monkeypatch.setattr(TokenModel, "forward", noisy)


@pytest.mark.parametrize("how", [{}, {"lora": True}, {"lora": True, "lora_dropout": 0.3}], ids=str)
def test_losses_gradients_and_weights_are_those_without_a_cache(train, how):
    """R3, R4: cold and warm, over two shuffled epochs; what the first epoch computes is equal in every bit."""
    plain, cold, warm = train(reference_cache=False, **how), train(**how), train(**how)
    assert series(cold)[:3] == series(plain)[:3]
    for run in (cold, warm):
        for found, expected in zip(series(run), series(plain), strict=True):
            assert found == pytest.approx(expected, rel=1e-5)
        for (name, found), (_, expected) in zip(
            run.policy.named_parameters(), plain.policy.named_parameters(), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-4, msg=name)
    assert plain.compute.reference.cache is None
    assert plain.metrics[0]["loss"] == pytest.approx(0.693147, abs=1e-5)


def test_cached_values_are_the_start_models_own(train):
    """R4: after training and shuffling, what is in the files equals plain transformers, row by row."""
    train()
    run = train(lora=True)
    module = tiny_model().eval()
    rows = [s for i in range(8) for s in sequences_of([run.source.data[i]])]
    assert len(rows) == 16
    for row in rows:
        found = ReferenceCache(run.compute.reference.cache.folder).logps([row], unknown)
        torch.testing.assert_close(found, by_transformers(module, row), rtol=1e-5, atol=1e-5)
    assert notes(run) == ["reference log-probs: 8 of 8 rows from the cache"]  # the base under an adapter is the same


@pytest.mark.parametrize("case", ["own start", "other model", "kto"])
def test_the_second_model_is_built_only_where_something_is_missing(train, tmp_path, monkeypatch, case):
    built = []
    real = Reference._use
    monkeypatch.setattr(Reference, "_use", lambda self, module: built.append(module) or real(self, module))
    keywords = {"eval_data": ROWS["dpo"][:3], "eval_every": 2}
    if case == "other model":
        keywords |= {"reference_model": str(save(tmp_path / "other", seed=1))}
    if case == "kto":
        keywords = {"method": "kto"}
    own = case == "own start"  # the policy itself is run before its first update
    first = train(**keywords)
    assert len(built) == (not own)
    second = train(**keywords)
    assert len(built) == (not own)
    assert second.compute.reference.model is None
    assert series(second) == series(first)
    rows = 8 if case == "kto" else 11
    assert notes(first) == [f"reference log-probs: 0 of {rows} rows from the cache"]
    assert ("no second model" in (first.path / "run.json").read_text()) == own
    assert notes(second) == [f"reference log-probs: {rows} of {rows} rows from the cache"]
    train(**keywords, reference_cache=False)
    assert len(built) == 2 - own


@pytest.mark.parametrize("lora", [False, True])
def test_another_reference_model_is_the_one_that_is_cached(train, tmp_path, lora):
    """The log-probs are its own, cold and warm, and not those of the policy's start."""
    other = str(save(tmp_path / "other", seed=1))
    plain = train(reference_model=other, reference_cache=False, lora=lora)
    cold, warm = train(reference_model=other, lora=lora), train(reference_model=other, lora=lora)
    assert series(cold)[:3] == series(plain)[:3]
    assert series(warm) == series(cold)
    assert abs(plain.metrics[0]["loss"] - 0.693147) > 1e-3
    module = type(tiny_model()).from_pretrained(other).eval()
    for row in sequences_of([plain.source.data[0]]):
        found = warm.compute.reference.cache.logps([row], unknown)
        torch.testing.assert_close(found, by_transformers(module, row), rtol=1e-5, atol=1e-5)


def test_a_model_that_was_left_out_is_loaded_as_it_was_at_the_start(train):
    """A method may ask for more than the data: the policy has moved by then and must not be copied."""
    train()
    run = train()
    assert run.compute.reference.model is None
    row = Sequence(torch.tensor([4, 5, 6, 6, 4]), torch.arange(5) > 1)
    with run.compute.reference.active() as active, torch.no_grad():
        assert active is not run.policy
        found = by_transformers(active.model, row)
    torch.testing.assert_close(found, by_transformers(tiny_model().eval(), row), rtol=1e-5, atol=1e-6)
    assert (found - by_transformers(run.model.eval(), row)).abs().max() > 1e-2


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("lora", [False, True])
def test_each_row_meets_the_reference_once(train, monkeypatch, where, lora):
    """Three epochs and four evaluations: 8 pairs for training, 3 for evaluation, in the first run alone."""
    seen = []
    real = Reference.active

    def active(self):
        seen.append(self)
        return real(self)

    counted = []
    forward = TokenModel.forward

    def counting(self, sequences, request):
        if seen and not torch.is_grad_enabled():
            counted.extend(sequences)
            seen.clear()
        return forward(self, sequences, request)

    monkeypatch.setattr(Reference, "active", active)
    monkeypatch.setattr(TokenModel, "forward", counting)

    def go(**keywords):
        if where == "memory":
            keywords |= {"model": tiny_model(), "tokenizer": tiny_tokenizer(), "cache": "off"}
        train(epochs=3.0, eval_data=ROWS["dpo"][:3], eval_every=3, lora=lora, **keywords)

    go()
    assert len(counted) == 2 * (8 + 3)
    go()
    assert len(counted) == 2 * (8 + 3) * (2 if where == "memory" else 1)
    counted.clear()
    go(reference_cache=False)
    assert len(counted) == 2 * (3 * 8 + 4 * 3)


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_a_resumed_run_uses_the_values_of_the_interrupted_one(train, tmp_path, noise, where):
    """With values that depend on their neighbours, equality in every bit shows that none was computed again."""
    keywords = {"epochs": 3.0, "save_every": 4, "save_total": 9, "eval_data": ROWS["dpo"][:3], "eval_every": 3}
    objects = {}
    if where == "memory":
        objects = {"model": tiny_model(), "tokenizer": tiny_tokenizer()}
        keywords |= {"cache": "off"}
    else:
        objects = {"tokenizer": tiny_tokenizer()}
    keywords |= objects
    whole = train(**keywords)
    shutil.copytree(whole.path, tmp_path / "resumed")
    for step in (8, 9):
        shutil.rmtree(tmp_path / "resumed" / "checkpoints" / f"step-{step}")
    if where == "memory":
        objects["model"] = tiny_model()
    resumed = api.resume(tmp_path / "resumed", data=ROWS["dpo"], eval_data=ROWS["dpo"][:3], **objects)
    assert series(resumed) == series(whole)
    assert resumed.evaluations == whole.evaluations
    without = train(**(keywords | {"reference_cache": False}))
    assert series(without)[6:] != series(whole)[6:]  # the noise is there


@pytest.mark.parametrize("where", ["off", None])
def test_d3_evaluating_the_same_rows_moves_no_step(train, tmp_path, noise, where):
    """D3: evaluation meets each row first, beside other neighbours; training goes on with its own values."""
    plain = train(cache=where or str(tmp_path / "one"))
    busy = train(cache=where or str(tmp_path / "two"), eval_data=ROWS["dpo"], eval_every=1)
    assert series(busy) == series(plain)


@pytest.mark.parametrize(
    ("change", "known"),
    [
        ({}, "8 of 8"),
        ({"learning_rate": 1e-3, "seed": 4, "batch_size": 2, "micro_batch_size": 1, "lora": True}, "8 of 8"),
        ({"steps": 1, "limit": 5}, "3 of 3"),
        ({"data": [*ROWS["dpo"][:6], {"prompt": "ab", "chosen": "cab", "rejected": "fgf"}]}, "6 of 7"),
        ({"data": [{k: v.replace("f", "c") for k, v in row.items()} for row in ROWS["dpo"]]}, "5 of 8"),
        ({"end_of_sequence": False}, "0 of 8"),
        ({"dtype": "float64"}, "0 of 8"),
        ({"autocast": True}, "0 of 8"),
        ({"packing": False}, "0 of 8"),
    ],
    ids=["nothing", "optimiser", "fewer", "more", "answers", "end", "dtype", "autocast", "layout"],
)
def test_what_is_found_again(train, change, known):
    """R5: a changed option of the optimiser finds everything; other rows, tokens or arithmetic find nothing."""
    train(epochs=1.0)
    expected = [f"reference log-probs: {known} rows from the cache"]
    assert notes(train(**({"epochs": 1.0} | change))) == expected


@pytest.mark.parametrize("change", ["weights", "weights with the same time", "config", "adapter"])
def test_another_model_finds_nothing(train, tmp_path, model, change):
    """R1, R5: also where a folder was overwritten with weights of the same size and time."""
    first = train(epochs=1.0, lora=change == "adapter")
    file = model / ("config.json" if change == "config" else "model.safetensors")
    times = file.stat().st_mtime_ns
    name = str(model)
    if change.startswith("weights"):
        save(model, seed=2)
        os.utime(file, ns=(times, times + (0 if change.endswith("time") else 1)))
        assert file.stat().st_mtime_ns - times in (0, 1)
    elif change == "config":
        config = json.loads(file.read_text())
        config["rope_parameters"]["rope_theta"] *= 2
        file.write_text(json.dumps(config))
    else:
        name = str(first.path / "model")
    run = train(model=name, epochs=1.0)
    assert notes(run) == ["reference log-probs: 0 of 8 rows from the cache"]
    assert run.metrics[0]["loss"] == pytest.approx(0.693147, abs=1e-5)  # the reference is the new start


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_file(train, tmp_path, monkeypatch):
    """The run goes on with the values in memory; events.jsonl says what happened; a checkpoint keeps them."""

    def full(folder, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reference_cache_module, "_write", full)
    run = train(save_every=2)
    assert run.step == 6
    assert files(tmp_path) == []
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    (event,) = [e for e in events if e["code"] == "reference-cache"]
    assert event["message"].endswith("cannot be written (No space left on device).")
    kept = torch.load(run.path / "checkpoints" / "step-6" / "training.pt", weights_only=True)["reference"]
    assert len(kept["keys"]) == len(kept["ends"]) == 16


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1  # inside the values: the format's own check sees nothing
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("harm", [cut, flip, lambda file: file.write_bytes(b""), lambda file: file.write_text("text")])
def test_a_damaged_file_is_noted_and_ignored(train, tmp_path, harm):
    first = train()
    (file,) = files(tmp_path)
    harm(file)
    second = train()
    assert notes(second) == [
        f"reference log-probs: '{file}' is damaged; its rows are computed again.",
        "reference log-probs: 0 of 8 rows from the cache",
    ]
    assert series(second) == series(first)
    assert notes(train()) == ["reference log-probs: 8 of 8 rows from the cache"]


def test_rows_that_do_not_come_back_are_not_kept(train, tmp_path):
    """Streams and samplers have no fixed dataset."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS["dpo"]))
    run = train(data=str(file), streaming=True, steps=2)
    assert run.compute.reference.cache is None
    assert run.compute.reference.model is not None
    assert files(tmp_path) == []


def test_two_processes_share_what_each_has_computed(train, tmp_path, model):
    """R4: as one process; each row is in the files once, and a later single process finds all of them."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS["dpo"]))
    command = [sys.executable, "-m", "posttrain", "train", "dpo", "--model", str(model), "--data", str(file)]
    command += ["--batch-size", "3", "--epochs", "2", "--learning-rate", "0.01", "--progress", "quiet"]
    command += [
        "--device",
        "cpu",
        "--cache",
        str(tmp_path / "cache"),
        "--nproc",
        "2",
        "--output",
        str(tmp_path / "two"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    losses = [json.loads(line)["loss"] for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    keys = [key.numpy().tobytes() for path in files(tmp_path) for key in load_file(path)["keys"]]
    assert len(keys) == len(set(keys)) == 16
    run = train(data=str(file))
    assert notes(run) == ["reference log-probs: 8 of 8 rows from the cache"]
    assert [line["loss"] for line in run.metrics] == pytest.approx(losses, rel=1e-5)
