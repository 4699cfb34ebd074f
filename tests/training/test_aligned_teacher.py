"""A teacher with another tokeniser, in whole runs: spans, chunks and layouts, against the mathematics done at once."""

import shutil

import pytest
import torch
from posttrain import resume, train
from posttrain.catalogue.methods import load
from posttrain.contract.views import Example, Sequence
from posttrain.distillation.align import align
from posttrain.distillation.teacher import ModelTeacher
from posttrain.distillation.teacher_inputs import attach_teacher_logits, matching, translate
from posttrain.errors import PosttrainError
from posttrain.network.chunked_head import TokenQuery
from posttrain.network.find_head import find_head
from posttrain.network.token_model import TokenModel, build_views
from posttrain.settings import Settings
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PROMPTS = ["ab", "c", "hg f"]
ANSWERS = ["abba", "cab ab", "bb"]
ROWS = [{"prompt": prompt, "completion": answer} for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
VOCABULARY = ["<pad>", "<s>", "</s>", "<unk>", "ab", "ba", "c", "bb", "a", "b", "d", "e", "f", "g", "h", " "]


def pair_tokenizer():
    """Tokens of one or two letters; another beginning and another order than the tiny tokenizer's."""
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(VOCABULARY)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("ab|ba|bb|."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def scene():
    ours, theirs = tiny_model(dtype=torch.float64), tiny_model(dtype=torch.float64, seed=77)
    theirs.resize_token_embeddings(len(VOCABULARY), mean_resizing=False)
    policy = TokenModel(ours, find_head(ours)).eval()
    own, other = tiny_tokenizer(), pair_tokenizer()
    teacher = ModelTeacher(theirs, other, True, 13)
    teacher.matched = matching(own, other, torch.device("cpu"))
    sequences = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        ids = torch.tensor([*own.encode(prompt + answer, add_special_tokens=False), own.eos_token_id])
        sequence = Sequence(ids, torch.arange(len(ids)) >= len(prompt))
        sequence.teacher, sequence.alignment = translate(
            prompt, ids[len(prompt) :], own, {2}, teacher, Settings().data, {}
        )
        sequences.append(sequence)
    return policy, teacher, sequences


def loss_of(scene, chunk, **options):
    policy, teacher, sequences = scene
    method = load("gold")
    config = method.config(options)
    request = TokenQuery(chunk)
    request.statistics = lambda logits, labels, **others: method.token_statistics(
        logits=logits, labels=labels, config=config, **others
    )
    attach_teacher_logits(request, teacher, sequences)
    policy.zero_grad()
    views = build_views([Example({"completion": [s]}) for s in sequences], policy(sequences, request))
    view = views.completion
    loss = (view.sum_of(view.distance) / view.sum_of(view.span)).mean()
    loss.backward()
    return loss.item(), policy.model.model.embed_tokens.weight.grad.clone()


def at_once(scene, merge):
    """The same from whole logits of both models, sequence by sequence, span by span in plain Python."""
    policy, teacher, sequences = scene
    ours, theirs = teacher.matched
    total = []
    for sequence in sequences:
        found = align(tiny_tokenizer(), sequence.ids[sequence.trained].tolist(), teacher.tokenizer,
                      sequence.teacher.ids[sequence.teacher.trained].tolist())  # fmt: skip
        tables = []
        for model, one in ((policy.model, sequence), (teacher.model.model, sequence.teacher)):
            logps = model(input_ids=one.ids[None]).logits[0].log_softmax(-1)[:-1][one.trained[1:]]
            tables.append((logps, one.ids[one.trained]))
        losses = []
        for span in range(found.spans):
            merged = []
            for (logps, labels), numbers in zip(tables, (found.student_spans, found.teacher_spans), strict=True):
                rows = (numbers == span).nonzero()[:, 0].tolist()
                base = rows[0] if merge == "observed" else rows[-1]
                rest = sum((logps[row, labels[row]] for row in rows if row != base), logps.new_zeros(()))
                merged.append((logps[base] + rest).exp())
            if not found.text[span]:
                continue
            s, t = merged[0], merged[1].detach()
            sm, tm = s[ours].clamp(min=1e-8), t[theirs].clamp(min=1e-8)
            m = 0.5 * sm + 0.5 * tm
            close = 0.5 * (tm * (tm / m).log()).sum() + 0.5 * (sm * (sm / m).log()).sum()
            s_rest = s[[i for i in range(len(s)) if i not in ours.tolist()]].sort(descending=True).values
            t_rest = t[[i for i in range(len(t)) if i not in theirs.tolist()]].sort(descending=True).values
            width = max(len(s_rest), len(t_rest))
            padded = [torch.cat([one, one.new_zeros(width - len(one))]) for one in (s_rest, t_rest)]
            weight = len(theirs) / len(t)
            losses.append(weight * close + (1 - weight) * (padded[0] - padded[1]).abs().sum())
        total.append(torch.stack(losses).mean())
    return torch.stack(total).mean()


@pytest.mark.parametrize("merge", ["observed", "bayesian"])
@pytest.mark.parametrize("chunk", [1, 2, 3, 256])
def test_loss_and_gradient_equal_the_whole_computation(scene, merge, chunk):
    loss, gradient = loss_of(scene, chunk, merge=merge)
    policy = scene[0]
    policy.zero_grad()
    expected = at_once(scene, merge)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(gradient, policy.model.model.embed_tokens.weight.grad, rtol=1e-7, atol=1e-10)


def test_spans_are_what_one_reads_off(scene):
    """abba: a b b a against ab ba; cab ab: c a b _ a b against c ab _ ab; and the two ends belong together."""
    _, _, sequences = scene
    assert sequences[0].alignment.student_spans.tolist() == [0, 0, 1, 1, 2]
    assert sequences[0].alignment.teacher_spans.tolist() == [0, 1, 2]
    assert sequences[1].alignment.student_spans.tolist() == [0, 1, 1, 2, 3, 3, 4]
    assert sequences[1].alignment.text.tolist() == [True] * 4 + [False]


def test_a_sequence_from_which_nothing_is_learnt_lies_between_others(scene):
    policy, teacher, sequences = scene
    mute = Sequence(sequences[2].ids, sequences[2].trained)
    with_mute = loss_with(policy, teacher, [sequences[0], mute, sequences[1]])
    without = loss_with(policy, teacher, sequences[:2])
    assert with_mute[1].tolist() == [0] * len(with_mute[1])
    torch.testing.assert_close(with_mute[0], without[0])
    torch.testing.assert_close(with_mute[2], without[1])


def loss_with(policy, teacher, sequences):
    method = load("gold")
    request = TokenQuery(3)
    request.statistics = lambda logits, labels, **others: method.token_statistics(
        logits=logits, labels=labels, config=method.config({}), **others
    )
    attach_teacher_logits(request, teacher, sequences)
    with torch.no_grad():
        found = policy(sequences, request)["distance"]
    return found.split([s.count for s in sequences])


@pytest.fixture
def folders(tmp_path):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    model.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    teacher = tiny_model(seed=77)
    teacher.resize_token_embeddings(len(VOCABULARY), mean_resizing=False)
    teacher.save_pretrained(tmp_path / "teacher")
    pair_tokenizer().save_pretrained(tmp_path / "teacher")
    return tmp_path


def run(folders, method, **changes):
    keywords = {"steps": 2, "batch_size": 3, "max_new_tokens": 5, "learning_rate": 1e-2, "progress": "quiet"} | changes
    return train(
        method,
        model=str(folders / "policy"),
        teacher=str(folders / "teacher"),
        data=ROWS,
        output=str(folders / "run"),
        cache="off",
        overwrite=True,
        **keywords,
    )


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_run_learns_from_a_teacher_with_other_tokens(folders, share):
    found = run(folders, "gold", on_policy_share=share, steps=8, temperature=1.0)
    lines = found.metrics
    assert lines[-1]["distance"] < lines[0]["distance"]
    assert all(line["on_policy"] == share for line in lines)
    assert 0.3 < lines[0]["spans_per_token"] < 1


def test_resume_in_the_middle_of_a_batch_of_rollouts(folders):
    whole = run(folders, "gold", steps=4, on_policy_share=1.0, updates_per_rollout=2, save_every=3, save_total=9)
    expected = [line["loss"] for line in whole.metrics]
    shutil.rmtree(whole.path / "checkpoints" / "step-4")
    again = resume(whole.path, data=ROWS)
    assert [line["loss"] for line in again.metrics] == expected


def test_other_methods_say_that_they_need_the_same_tokens(folders):
    with pytest.raises(PosttrainError, match="another tokeniser"):
        run(folders, "gkd")
