"""ZeRO 1, 2 and 3 give the numbers of one process: many runs in one start of two processes."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from posttrain.distributed.zero_config import configuration, stage_of
from posttrain.errors import SettingsError
from posttrain.settings import DistributedSettings

from .cases import PROMOTED, STABLE
from .test_strategies import TOLERANCE, difference, once, same_evaluations

pytest.importorskip("deepspeed", reason="needs the extra posttrain[deepspeed]")

#: Name -> method, options of one process, and those of deepspeed alone.
MORE = {
    "sft-zero-1": ("sft", {}, {"zero_stage": 1}),
    "sft-offload": ("sft", {}, {"zero_stage": 2, "cpu_offload": True}),
    "sft-offload-3": ("sft", {}, {"zero_stage": 3, "cpu_offload": True}),
    # unlike numbers of chunks on the two ranks; without the pass of the proof, after which ZeRO keeps what it gathered
    "sft-chunks": ("sft", {"head_chunk_tokens": 3, "verify_saved": False}, {"zero_stage": 3}),
    "dpo-adapter": ("dpo", {"lora": True, "lora_rank": 4}, {"zero_stage": 3}),
    "grpo-updates": ("grpo", {"updates_per_rollout": 2, "minibatches_per_rollout": 2, "steps": 6}, {"zero_stage": 3}),
    "ppo": ("ppo", {}, {"zero_stage": 3}),
}
COMMON = {"strategy": "deepspeed"}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    cases = {method: {"method": method} for method in (*STABLE, *PROMOTED)}
    cases |= {name: {"method": method, **options} for name, (method, options, _) in MORE.items()}
    cases["sft-saved"] = {"method": "sft", "steps": 6, "schedule": "constant"}
    return once(tmp_path_factory, "zero-one", cases, 1)


@pytest.fixture(scope="module")
def two(tmp_path_factory, file):
    cases = {f"{m}/{s}": {"method": m, "zero_stage": s, **COMMON} for m in (*STABLE, *PROMOTED) for s in (2, 3)}
    cases |= {name: {"method": m, **COMMON, **options, **own} for name, (m, options, own) in MORE.items()}
    for stage in (2, 3):
        own = {"zero_stage": stage, "steps": 3, "schedule": "constant", "deepspeed_config": file}
        cases[f"saved-{stage}"] = {"method": "sft", **own, **COMMON}
        cases[f"resumed-{stage}"] = {"method": "sft", "resume": f"saved-{stage}", "steps": 6}
        for option in ("bfloat16_gradients", "autocast"):
            cases[f"{option}/{stage}"] = {"method": "sft", "zero_stage": stage, option: True, **COMMON}
    cases["adafactor"] = {"method": "sft", "optimizer": "adafactor", **COMMON}
    return once(tmp_path_factory, "zero-two", cases, 2)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file as users bring it, with values that are filled in."""
    path = tmp_path_factory.mktemp("zero") / "ds.json"
    own = {"train_batch_size": "auto", "gradient_clipping": "auto", "bf16": {"enabled": "auto"}}
    own |= {"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}, "zero_optimization": {"reduce_bucket_size": 5000}}
    path.write_text(json.dumps(own))
    return str(path)


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("method", [*STABLE, *PROMOTED])
def test_stable_methods_give_the_losses_of_one_process(one, two, method, stage):
    found, expected = two[f"{method}/{stage}"], one[method]
    print(f"{method} zero {stage}: {difference(found, expected):.1e}")
    assert difference(found, expected) <= TOLERANCE
    assert difference(found, expected, "norms") <= 1e-4
    same_evaluations(found, expected)


@pytest.mark.parametrize("name", MORE)
def test_everything_else_gives_the_losses_of_one_process(one, two, name):
    print(f"{name}: {difference(two[name], one[name]):.1e}")
    assert difference(two[name], one[name]) <= TOLERANCE
    same_evaluations(two[name], one[name])


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("option", ["bfloat16_gradients", "autocast"])
def test_bfloat16_is_near(one, two, option, stage):
    """With gradients alone rounded, the first step's loss is exact."""
    found, expected = two[f"{option}/{stage}"], one["sft"]
    print(f"{option} zero {stage}: {difference(found, expected):.1e}")
    exact = abs(found["losses"][0] - expected["losses"][0]) <= TOLERANCE
    assert exact == (option == "bfloat16_gradients")
    assert TOLERANCE < difference(found, expected) < 0.15


def test_stage_3_leaves_nothing_whole(one, two):
    """Between steps a rank holds no weights but its shares."""
    assert one["sft"]["whole"] == two["sft/2"]["shards"] > 0
    assert two["sft-chunks"]["shards"] < 0.1 * one["sft"]["whole"]


@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_goes_on_where_it_was(one, two, stage):
    """Weights, moments and schedule come back: the series of three and three steps is that of six."""
    assert difference(two[f"resumed-{stage}"], one["sft-saved"]) <= TOLERANCE


def test_optimisers_that_need_whole_tensors_are_refused(two):
    assert two["adafactor"]["error"].startswith("Optimizer 'adafactor' needs whole tensors, which ZeRO cuts.")


def written(tmp_path, **keys) -> DistributedSettings:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(keys))
    return DistributedSettings(deepspeed_config=str(path))


def test_the_users_own_file_is_kept(tmp_path):
    settings = written(
        tmp_path,
        zero_optimization={"stage": 3, "overlap_comm": True, "stage3_prefetch_bucket_size": 9},
        wall_clock_breakdown=True,
    )
    found = configuration(settings, False, 1.0, 4, 1_000_000, 64)
    assert found["wall_clock_breakdown"] is True
    assert found["zero_optimization"]["overlap_comm"] is True
    assert found["zero_optimization"]["stage"] == stage_of(settings) == 3
    assert found["train_batch_size"] == 4
    assert found["gradient_clipping"] == 1.0
    assert found["zero_optimization"]["stage3_max_live_parameters"] == 100_000
    assert found["zero_optimization"]["stage3_prefetch_bucket_size"] == 0  # ranks would gather unlike weights ahead


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (
            {"optimizer": {"type": "Lion", "params": {"lr": 0.1}}},
            "sets 'optimizer', which the run decides (--optimizer",
        ),
        ({"train_batch_size": 64}, "sets 'train_batch_size', which the run decides (--batch-size). Take it out of the"),
        ({"fp16": {"enabled": True}}, "switches fp16 on. Weights are float32 or bfloat16 here: --dtype bfloat16"),
        ({"zero_optimization": {"stage": 0}}, "ZeRO stage is 0, expected 1, 2 or 3."),
    ],
)
def test_a_file_that_contradicts_the_run_is_refused(tmp_path, keys, text):
    with pytest.raises(SettingsError) as caught:
        configuration(written(tmp_path, **keys), False, 1.0, 2, 1000, 8)
    assert text in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(SettingsError, match=r"^DeepSpeed's file 'none.json' cannot be read: No such file"):
        stage_of(DistributedSettings(deepspeed_config="none.json"))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(SettingsError, match="cannot be read: it is not JSON"):
        stage_of(DistributedSettings(deepspeed_config=str(tmp_path / "bad.json")))
    settings = replace(written(tmp_path, zero_optimization={"stage": 3}), zero_stage=2)
    with pytest.raises(SettingsError, match=r"^zero-stage is 2, but '.*' says stage 3. Leave one out."):
        stage_of(settings)


def test_importing_it_leaves_the_environment_as_it_was():
    code = (
        "import os; before = dict(os.environ); from posttrain.distributed.deepspeed import library; library(); "
        "import torch, deepspeed; assert os.environ.get('DS_ACCELERATOR') == before.get('DS_ACCELERATOR'); "
        "name = deepspeed.get_accelerator().device_name(); "
        "assert torch.accelerator.is_available() or name == 'cpu', name"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "accelerator" not in done.stdout + done.stderr
