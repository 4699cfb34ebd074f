"""Teachers of every kind: each against transformers on the same tokens, and where the run keeps what it needs."""

import shutil
from pathlib import Path

import pytest
import torch
from posttrain import api, hookimpl
from posttrain.assembly import build
from posttrain.contract.generation import Completion
from posttrain.contract.rollout import Rollout
from posttrain.contract.views import Sequence
from posttrain.distillation.teacher import AdapterTeacher, ModelTeacher
from posttrain.distillation.teacher_inputs import has_teacher_target
from posttrain.errors import ModelError, SettingsError
from posttrain.training.step import shared_logps
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

ROWS = [{"prompt": "ab", "privileged_context": "cab"}, {"prompt": "b", "privileged_context": "aa"}]
USUAL = {"batch_size": 2, "steps": 3, "learning_rate": 1e-2, "schedule": "constant", "max_new_tokens": 5, "seed": 3}
QUIET = {"progress": "quiet", "cache": "off", "device": "cpu"}


def sequence(ids, prompt):
    ids = torch.tensor(ids)
    return Sequence(ids, torch.arange(len(ids)) >= prompt)


#: Of unlike lengths; prompts of 2, 1 and 3 tokens.
SEQUENCES = [sequence([4, 5, 6, 7, 2], 2), sequence([8, 9, 4], 1), sequence([4, 4, 5, 10, 11, 12, 6, 7], 3)]


def expected(module, sequences=SEQUENCES, temperature=1.0):
    """Log-probs of the trained tokens by transformers alone, one sequence at a time."""
    module = module.eval()
    found = []
    for one in sequences:
        with torch.no_grad():
            logps = (module(input_ids=one.ids[None]).logits[0, :-1, :13] / temperature).log_softmax(-1)  # (n-1, V)
        found.append(logps.gather(1, one.ids[1:, None])[:, 0][one.trained[1:]])
    return found


def assert_equal(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


@pytest.fixture
def train(tmp_path):
    """Train on two prompts; every call has its own run directory."""
    calls = iter(range(100))

    def call(method="sdft", **keywords):
        objects = {"model": tiny_model(), "tokenizer": tiny_tokenizer(), "data": ROWS}
        objects["output"] = str(tmp_path / f"run-{next(calls)}")
        return api.train(method, **(objects | USUAL | QUIET | keywords))

    return call


def saved(folder: Path, model) -> str:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_another_model_from_a_folder(train, tmp_path):
    """Also at another temperature, which divides the teacher's logits too (P7)."""
    folder = saved(tmp_path / "teacher", tiny_model(seed=77))
    for temperature in (1.0, 0.5):
        run = train("opd", teacher_model=folder, temperature=temperature)
        wanted = expected(tiny_model(seed=77), temperature=temperature)
        assert_equal(shared_logps(run.compute, SEQUENCES, "teacher"), wanted)
        assert not any(parameter.requires_grad for parameter in run.compute.teacher.model.parameters())


@pytest.mark.parametrize("lora", [False, True])
def test_base_is_the_model_at_the_start(train, lora):
    run = train(teacher_model="base", lora=lora)
    assert_equal(shared_logps(run.compute, SEQUENCES, "teacher"), expected(tiny_model()))
    gap = (
        (shared_logps(run.compute, SEQUENCES, "policy")[2] - shared_logps(run.compute, SEQUENCES, "teacher")[2])
        .abs()
        .max()
    )
    assert gap > 1e-3


@pytest.mark.parametrize("lora", [False, True])
def test_live_is_the_model_as_it_is(train, lora):
    run = train(teacher_model="live", lora=lora)
    assert_equal(shared_logps(run.compute, SEQUENCES, "teacher"), expected(run.model))
    assert_equal(shared_logps(run.compute, SEQUENCES, "teacher"), shared_logps(run.compute, SEQUENCES, "policy"))


class Weights:
    """An observer that keeps the trained weights after each step."""

    def __init__(self):
        self.seen = []

    @hookimpl
    def posttrain_run_started(self, run):
        self.seen.append(self.of(run))

    @hookimpl
    def posttrain_step_done(self, run):
        self.seen.append(self.of(run))

    def of(self, run):
        return {name: p.detach().clone() for name, p in run.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("lora", [False, True])
def test_average_is_worked_out_by_hand(train, lora):
    """After three steps a + 0.3 (w1 - a), then w2, then w3, of each trained weight; the policy keeps its own."""
    weights = Weights()
    run = train(teacher_model="average", teacher_average_rate=0.3, lora=lora, observers=[weights])
    assert len(weights.seen) == 4
    average = weights.seen[0]
    for later in weights.seen[1:]:
        average = {name: value + 0.3 * (later[name] - value) for name, value in average.items()}
    policy = weights.of(run)
    with run.compute.teacher.active():
        now = weights.of(run)
    torch.testing.assert_close(now, average, atol=1e-6, rtol=1e-5)
    assert all(torch.equal(policy[name], value) for name, value in weights.of(run).items())
    assert any(not torch.equal(policy[name], value) for name, value in average.items())


def test_average_goes_on_after_a_resume_as_if_nothing_had_happened(train):
    """R7: every loss, and every bit of the average."""
    whole = train(teacher_model="average", steps=4, save_every=2)
    copy = whole.path.with_name("resumed")
    shutil.copytree(whole.path, copy)
    shutil.rmtree(copy / "checkpoints" / "step-4")
    again = api.resume(copy, model=tiny_model(), tokenizer=tiny_tokenizer(), data=ROWS)
    assert [line["loss"] for line in again.metrics] == [line["loss"] for line in whole.metrics]
    assert whole.compute.teacher.saved().keys() == again.compute.teacher.saved().keys()
    assert all(
        torch.equal(value, again.compute.teacher.saved()[name]) for name, value in whole.compute.teacher.saved().items()
    )


@pytest.fixture
def base(tmp_path):
    return saved(tmp_path / "base", tiny_model())


@pytest.fixture
def adapter(train, base):
    """An adapter over ``base`` that has learnt something."""
    run = train("sdft", model=base, tokenizer=None, lora=True, seed=9)
    return str(run.path / "model")


def with_adapter(base, adapter):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)


def test_an_adapter_over_the_policys_own_base(train, base, adapter):
    """One copy of the base serves both; the teacher sees its adapter, the policy trains its own (R1)."""
    run = train(model=base, tokenizer=None, lora=True, teacher_model=adapter)
    assert isinstance(run.compute.teacher, AdapterTeacher)
    assert run.compute.teacher.policy is run.policy
    names = [name for name, _ in run.model.named_parameters()]
    assert sum("embed_tokens" in name for name in names) == 1
    wanted = expected(with_adapter(base, adapter))
    assert_equal(shared_logps(run.compute, SEQUENCES, "teacher"), wanted)
    assert (shared_logps(run.compute, SEQUENCES, "policy")[2] - wanted[2]).abs().max() > 1e-3
    trained = [name for name, p in run.model.named_parameters() if p.requires_grad]
    assert trained
    assert all(".default." in name for name in trained)
    assert_equal(expected(with_adapter(base, run.path / "model")), expected(run.model))  # saved without the teacher


def test_an_adapter_over_another_model_is_merged_into_it(train, base, adapter):
    run = train(teacher_model=adapter)
    assert isinstance(run.compute.teacher, ModelTeacher)
    assert_equal(shared_logps(run.compute, SEQUENCES, "teacher"), expected(with_adapter(base, adapter)))


@pytest.mark.parametrize("size", [11, 20])
def test_a_vocabulary_of_another_size(train, tmp_path, size):
    """P8: rows that only pad the teacher's matrix are ignored, ones that it lacks have no probability."""
    module = tiny_model(seed=77)
    module.resize_token_embeddings(size, mean_resizing=False)
    folder = saved(tmp_path / "teacher", module)
    run = train("gkd", teacher_model=folder, on_policy_share=1.0)
    assert all(line["loss"] > 0 for line in run.metrics)
    known = [one for one in SEQUENCES if int(one.ids.max()) < 11]
    assert_equal(shared_logps(run.compute, known, "teacher"), expected(module, known, run.compute.temperature))
    (logps,) = shared_logps(run.compute, [sequence([4, 12], 1)], "teacher")
    assert (logps.item() < -100) == (size == 11)
    assert torch.isfinite(logps).all()


def under_another_prompt():
    """The answers of SEQUENCES, each as the teacher sees it: behind other tokens, more or fewer of them."""
    return [
        Sequence(one.ids, one.trained, teacher=sequence([*other, *one.ids[one.trained].tolist()], len(other)))
        for one, other in zip(SEQUENCES, [[9, 9, 9, 4], [5, 6, 7], [8]], strict=True)
    ]


@pytest.mark.parametrize("packing", [True, False])
def test_under_another_prompt(train, tmp_path, packing):
    """M13: the answer's own tokens behind the other prompt, the same packed and padded, alone and together."""
    folder = saved(tmp_path / "teacher", tiny_model(seed=77))
    run = train("opd", teacher_model=folder, packing=packing)
    assert (run.policy.packed, run.compute.teacher.model.packed) == (packing, packing)
    sequences = under_another_prompt()
    wanted = expected(tiny_model(seed=77), has_teacher_target(sequences))
    assert_equal(shared_logps(run.compute, sequences, "teacher"), wanted)
    assert_equal([shared_logps(run.compute, [one], "teacher")[0] for one in sequences], wanted)
    whole = run.compute.teacher.logits(has_teacher_target(sequences), 1.0)(slice(0, 100)).log_softmax(-1)  # (n, V)
    labels = torch.cat([one.ids[one.trained] for one in sequences])
    assert_equal([whole.gather(1, labels[:, None])[:, 0]], [torch.cat(wanted)])


def test_an_answer_that_is_not_learnt_has_no_tokens_for_the_teacher_either():
    given = sequence([9, 5, 6, 2], 1)
    completion = Completion(given.ids[1:], torch.zeros(3), False, "")
    rollout = Rollout(0, torch.tensor([4, 4]), completion, {}, teacher=given)
    assert [one.count for one in (rollout.sequence(), rollout.sequence().teacher)] == [3, 3]
    assert [one.count for one in (rollout.sequence(False), rollout.sequence(False).teacher)] == [0, 0]
    assert given.count == 3


@pytest.fixture
def no_weights(monkeypatch):
    """Loading a model is a failure of the test."""

    def refuse(*arguments):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(build, "load_policy", refuse)


@pytest.mark.usefixtures("no_weights")
def test_a_missing_teacher_is_refused_before_weights_load(train):
    with pytest.raises(SettingsError) as caught:
        train("opd")
    assert str(caught.value) == (
        "Method 'opd' learns from a teacher and none was given. Name one: --teacher-model FOLDER, a Hub id, the "
        "address of a vLLM server, or base, live, average for the model itself."
    )


@pytest.mark.usefixtures("no_weights")
def test_a_teacher_with_other_tokens_is_refused_before_weights_load(train, tmp_path):
    folder = tmp_path / "teacher"
    other = tiny_tokenizer()
    other.add_tokens(["<new>"])
    tiny_model(seed=77).save_pretrained(folder)
    other.save_pretrained(folder)
    with pytest.raises(ModelError) as caught:
        train("opd", teacher_model=str(folder))
    assert str(caught.value) == (
        f"Teacher '{folder}' has another tokeniser than the model, and 'opd' compares them token by token. "
        "Choose a teacher of the model's own family, or a method that aligns their texts: gold"
    )


def test_a_teacher_that_must_answer_has_to_be_here(train, monkeypatch):
    """A mixture needs the teacher's next token at every step, which a server does not give."""

    class Far:
        tokenizer = None

    monkeypatch.setattr(build, "load_teacher", lambda *arguments: Far())
    with pytest.raises(SettingsError, match="'minillm' lets the teacher answer; it has to be a local model"):
        train("minillm", teacher_model="http://localhost:1/v1")
