"""The process reward model against numbers worked by hand, the golden values, and transformers' own reading."""

import pytest
import torch
from peft import PeftModel
from posttrain import api
from posttrain.contract.views import PerToken, View, Views
from posttrain.network.chunked_head import TokenQuery
from posttrain_testkit.by_hand import call_loss, method_beside, tensor
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForTokenClassification

METHOD = method_beside(__file__)

#: Two solutions: steps end at the second and fourth token, and at the first. Scores elsewhere mean nothing.
MASK = torch.tensor([[True, True, True, True], [True, True, False, False]])
ENDS = torch.tensor([[False, True, False, True], [True, False, False, False]])
LABELS = tensor([0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0])
SCORES = tensor([9.0, 2.0, -9.0, 1.0], [0.0, 7.0, 0.0, 0.0])


def loss_of(scores, **options):
    return call_loss(
        METHOD,
        Views(completion=View(torch.full_like(scores, torch.nan), MASK, scores=scores)),
        columns={"step_end": ENDS, "step_label": LABELS},
        **options,
    )


def test_cross_entropy_at_the_ends_of_steps():
    """A good step at 2: ln(1 + e^-2) = 0.126928. A bad one at 1: ln(1 + e^1) = 1.313262. A good one at 0: ln 2."""
    loss, metrics = loss_of(SCORES)
    assert isinstance(loss, PerToken)
    assert loss.mask is ENDS
    assert loss.values[ENDS].tolist() == pytest.approx([0.126928, 1.313262, 0.693147], abs=1e-6)
    found = {name: metric.values[metric.mask].tolist() for name, metric in metrics.items()}
    assert found == {
        "accuracy": [1, 0, 0],
        "positive_share": [1, 0, 1],
        "score_good": [2, 0],
        "score_bad": [1],
    }


def test_two_classes_are_one_score():
    """Softmax cross-entropy over logits (bad, good) is the loss of their difference."""
    logits = tensor([0.3, 1.4], [2.0, -0.5])
    wanted = torch.nn.functional.cross_entropy(logits, torch.tensor([1, 0]), reduction="none")
    scores = SCORES.clone()
    scores[0, [1, 3]] = logits[:, 1] - logits[:, 0]
    assert loss_of(scores)[0].values[0, [1, 3]].tolist() == pytest.approx(wanted.tolist())


def test_the_last_step_alone():
    """One value a solution, also for one of a single step; the accuracy is that of these steps."""
    loss, metrics = loss_of(SCORES, train_on_last_step_only=True)
    assert loss.tolist() == pytest.approx([1.313262, 0.693147], abs=1e-6)
    assert metrics["accuracy"].values[metrics["accuracy"].mask].tolist() == [0, 0]


def test_only_ends_of_steps_get_a_gradient():
    """sigmoid(score) less the label, and nothing anywhere else."""
    scores = SCORES.clone().requires_grad_()
    loss, _ = loss_of(scores)
    loss.values[ENDS].sum().backward()
    assert scores.grad.flatten().tolist() == pytest.approx([0, -0.119203, 0, 0.731059, -0.5, 0, 0, 0], abs=1e-6)


@pytest.mark.parametrize("last", [False, True])
def test_gradient_equals_finite_differences(last):
    def total(scores):
        loss, _ = loss_of(scores, train_on_last_step_only=last)
        return loss.sum() if last else loss.values[ENDS].sum()

    assert torch.autograd.gradcheck(total, (SCORES.clone().requires_grad_(),))


ROWS = [
    {
        "prompt": "ab",
        "completions": ["abc", "efg", "a"][: 1 + place % 3],
        "labels": [True, False, True][: 1 + place % 3],
    }
    for place in range(6)
]


def train(folder, **options):
    keywords = {"output": str(folder), "batch_size": 4, "steps": 12, "learning_rate": 1e-2, "progress": "quiet"}
    return api.train(
        METHOD,
        tokenizer=tiny_tokenizer(),
        data=ROWS,
        eval_data=ROWS[:3],
        cache="off",
        device="cpu",
        **(keywords | options),
    )


@pytest.mark.parametrize("lora", [False, True])
def test_transformers_reads_what_was_trained(tmp_path, lora):
    """R10: two labels, and at every token the scores that the run's own model gives; the base has no head."""
    tiny_model().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    run = train(tmp_path / "run", model=str(tmp_path / "base"), lora=lora)
    assert run.evaluations[-1]["eval_accuracy"] == 1
    sequences = [run.source.data[place].sequences["completion"][0] for place in range(3)]
    with torch.no_grad():
        ours = run.policy(sequences, TokenQuery())["scores"].split([one.count for one in sequences])
    if lora:
        base = AutoModelForTokenClassification.from_pretrained(tmp_path / "base", num_labels=2)
        model = PeftModel.from_pretrained(base, tmp_path / "run" / "model")
    else:
        model = AutoModelForTokenClassification.from_pretrained(tmp_path / "run" / "model")
        assert model.config.id2label == {0: "bad", 1: "good"}
    for sequence, scores in zip(sequences, ours, strict=True):
        with torch.no_grad():
            logits = model.eval()(input_ids=sequence.ids[None]).logits[0, sequence.trained]  # (t, 2)
        assert (logits[:, 1] - logits[:, 0]).tolist() == pytest.approx(scores.tolist(), abs=1e-5)
