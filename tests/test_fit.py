"""What a run chooses where its memory is short: by hand for made-up needs, and in runs that are told what is free."""

import json
import math
import shutil
import sys
from types import ModuleType

import pytest
import torch
from posttrain import api
from posttrain.assembly import estimate, fit
from posttrain.cli.main import main
from posttrain.settings import Settings
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

MB = 2**20
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def needs(settings):
    """100 MB and 1 MB a token, a tenth of it where layers are recomputed, none of that where they are away too."""
    tokens = settings.memory.micro_batch_tokens or 512
    layers = 0.1 if settings.model.gradient_checkpointing else 1.0
    if settings.memory.offload_activations:
        layers = 0.01
    return (100 + tokens * layers) * MB


@pytest.mark.parametrize(
    ("free", "given", "chosen"),
    [
        (800, {}, {}),  # 612 of 640
        (700, {}, {"micro_batch_tokens": 256}),  # 356 of 560
        (300, {}, {"micro_batch_tokens": 128}),  # 228 of 240
        (250, {}, {"gradient_checkpointing": True}),  # 151.2 of 200
        (160, {}, {"gradient_checkpointing": True, "micro_batch_tokens": 256}),  # 125.6 of 128
        (250, {"gradient_checkpointing": False}, {"micro_batch_tokens": 128}),  # does not fit, but comes closest
        (250, {"micro_batch_tokens": 512}, {"gradient_checkpointing": True}),
        (250, {"micro_batch_tokens": 512, "gradient_checkpointing": False}, {}),
    ],
)
def test_passes_shrink_before_layers_are_recomputed(monkeypatch, free, given, chosen):
    monkeypatch.setattr(fit, "free_bytes", lambda device: free * MB)
    found = fit.fit(Settings(**given), CPU, False, 0, needs)
    assert found.changes == chosen
    assert found.settings.flat() == Settings(**(given | chosen)).flat()
    fits = needs(Settings(**given)) <= 0.8 * free * MB
    assert bool(found.note) is not fits


def test_activations_leave_a_gpu_last(monkeypatch):
    monkeypatch.setattr(fit, "free_bytes", lambda device: 120 * MB)
    given = Settings(micro_batch_tokens=512)
    assert fit.fit(given, CPU, False, 0, needs).changes == {"gradient_checkpointing": True}
    found = fit.fit(given, GPU, False, 0, needs)  # 105.1 of 108
    assert found.changes == {"gradient_checkpointing": True, "offload_activations": True}
    assert found.flags == "--gradient-checkpointing --offload-activations"
    assert found.note == (
        "Passes of 512 tokens would take about 612 MB more memory, and the run may take 108 MB, 90% of what is free: "
        "--gradient-checkpointing --offload-activations was chosen, for about 105 MB."
    )


def test_passes_are_not_made_smaller_than_the_longest_row(monkeypatch):
    monkeypatch.setattr(fit, "free_bytes", lambda device: 100 * MB)
    tried = []
    fit.fit(Settings(), CPU, False, 300, lambda settings: tried.append(settings) or math.inf)
    assert {one.memory.micro_batch_tokens for one in tried} == {None, 256}


def test_what_does_not_help_is_not_chosen(monkeypatch):
    monkeypatch.setattr(fit, "free_bytes", lambda device: 100 * MB)
    found = fit.fit(Settings(), CPU, True, 0, lambda settings: 500 * MB)  # sampling takes most, say
    assert found.changes == {}
    assert found.note.endswith("Smaller passes do not help. If it is killed: --lora, --quantize nf4, a smaller model.")


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("imported", [False, True])
def test_peft_in_memory_is_nothing_that_a_run_could_free(monkeypatch, lora, imported):
    if imported:
        monkeypatch.setitem(sys.modules, "peft", ModuleType("peft"))
    else:
        monkeypatch.delitem(sys.modules, "peft", raising=False)
    to_come = estimate.process_bytes(lora) - estimate.held_bytes(lora)
    assert abs(to_come - (40 + 60 * (lora and not imported)) * MB) < MB  # the process may grow between the two


@pytest.fixture
def folder(tmp_path):
    model = tmp_path / "small"
    tiny_model().save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    rows = [{"prompt": "abcd" * 10, "completion": "efgh" * (1 + row)} for row in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run_of(folder, name, **options):
    own = {"batch_size": 8, "steps": 4, "progress": "quiet", "cache": "off", "report": False, "verify_saved": False}
    paths = {"model": str(folder / "small"), "data": str(folder / "rows.jsonl"), "output": str(folder / name)}
    return api.train("sft", **(own | paths | {"device": "cpu"} | options))


def tight(monkeypatch, bytes_free):
    """Let a run think that so little is free, beyond the process and what a tiny model takes without activations."""
    monkeypatch.setattr(fit, "free_bytes", lambda device: bytes_free)
    monkeypatch.setattr(estimate, "START", 0)
    monkeypatch.setattr(estimate, "ALLOCATOR", 0)


def test_a_run_fits_itself_and_a_resumed_one_keeps_the_choice(folder, monkeypatch):
    plain = run_of(folder, "plain")
    assert plain.settings.memory.micro_batch_tokens is None
    assert plain.settings.model.gradient_checkpointing is None
    tight(monkeypatch, 0)
    chosen = run_of(folder, "chosen", save_every=2, save_total=9)
    assert chosen.settings.memory.micro_batch_tokens == 128
    assert chosen.settings.model.gradient_checkpointing is True
    notes = json.loads((folder / "chosen" / "run.json").read_text())["notes"]
    (note,) = [one for one in notes if one.startswith("Passes of 512 tokens")]
    assert "--gradient-checkpointing --micro-batch-tokens 128" in note
    for ours, theirs in zip(chosen.metrics, plain.metrics, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    monkeypatch.undo()  # as much as ever is free when the run is resumed
    shutil.rmtree(folder / "chosen" / "checkpoints" / "step-4")
    resumed = api.resume(folder / "chosen")
    assert resumed.settings.memory.micro_batch_tokens == 128
    assert [line["loss"] for line in resumed.metrics] == [line["loss"] for line in chosen.metrics]


def test_what_was_given_stays(folder, monkeypatch):
    tight(monkeypatch, 0)
    given = {"micro_batch_tokens": 300, "gradient_checkpointing": False}
    run = run_of(folder, "given", steps=1, **given)
    assert {name: run.settings.get(name) for name in given} == given
    assert run_of(folder, "rows", steps=1, micro_batch_size=2).settings.model.gradient_checkpointing is None


def test_a_dry_run_and_doctor_say_the_same(folder, monkeypatch, capsys):
    tight(monkeypatch, 0)
    paths = ["--model", str(folder / "small"), "--data", str(folder / "rows.jsonl"), "--device", "cpu"]
    assert main(["train", "sft", *paths, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert any("--micro-batch-tokens 128" in note for note in plan["notes"])
    assert main(["doctor", "--model", str(folder / "small"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["memory"]["strategies"]
    (single,) = [row for row in rows if row["strategy"] == "single"]
    assert single["fits"].endswith("with --gradient-checkpointing --micro-batch-tokens 128")


def test_a_row_longer_than_a_pass_counts_as_the_pass(folder):
    model = estimate.sizes_of(Settings(model=str(folder / "small")).model)
    usual, long = (
        estimate.estimate(model, Settings(), CPU, estimate.Load(longest=tokens))["activations"] for tokens in (0, 2048)
    )
    assert long == 4 * usual


def test_what_a_container_leaves(tmp_path):
    """Limits of the own group and of one above it; cached files count as free."""
    inner = tmp_path / "groups" / "outer" / "inner"
    inner.mkdir(parents=True)
    own = tmp_path / "cgroup"
    own.write_text("0::/outer/inner\n")
    assert estimate.group_free_bytes(tmp_path / "groups", own) > 2**60  # no limits
    for group, limit, used, files in ((inner, 900, 600, 100), (inner.parent, 2000, 1700, 50)):
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"anon 3\ninactive_file {files}\nactive_file 7\n")
    assert estimate.group_free_bytes(tmp_path / "groups", own) == 350
    (inner.parent / "memory.max").write_text("max\n")
    assert estimate.group_free_bytes(tmp_path / "groups", own) == 400
    assert estimate.group_free_bytes(tmp_path / "groups", tmp_path / "none") > 2**60
