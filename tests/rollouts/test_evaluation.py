"""Evaluation of online methods: the likeliest answers, scored, on held-out prompts."""

from types import ModuleType

import pytest
import torch
from posttrain import hookimpl
from posttrain.catalogue.cards import Card
from posttrain.catalogue.methods import from_module
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

from .conftest import PROMPTS, ROWS

LENGTH = 6


def likeliest_answers(model, prompts):
    """transformers' own decoding, prompt after prompt, as tokens."""
    tokenizer = tiny_tokenizer()
    answers = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])  # (1, n)
        stop = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        given = {"attention_mask": torch.ones_like(ids), "max_new_tokens": LENGTH, "do_sample": False}
        output = model.eval().generate(ids, **given, **stop)
        answers.append(output[0, ids.size(1) :].tolist())
    return answers


@pytest.mark.parametrize("seed", [0, 5])
def test_an_evaluation_takes_the_likeliest_tokens(train, seed):
    """Scored by whether they are transformers' own greedy answers: all of them, whatever the seed and temperature."""
    tokens = likeliest_answers(tiny_model(), PROMPTS)
    texts = tiny_tokenizer().batch_decode(tokens, skip_special_tokens=True)
    answers = dict(zip(PROMPTS, texts, strict=True))

    def likeliest(prompts, completions, **columns):
        return [float(text == answers[prompt]) for prompt, text in zip(prompts, completions, strict=True)]

    same = {"learning_rate": 0.0, "steps": 2, "eval_every": 1, "eval_data": ROWS, "reward": likeliest}
    run = train("grpo", **same, seed=seed, temperature=1.5)
    assert [found["eval_reward"] for found in run.evaluations] == [1.0] * 3
    assert run.metrics[-1]["reward"] < 0.5  # the training samples


def test_answers_that_no_reward_could_judge_are_no_part_of_an_evaluation(train):
    def only_long_prompts(prompts, completions):
        return [float(len(prompt)) if len(prompt) > 1 else None for prompt in prompts]

    run = train("grpo", learning_rate=0.0, steps=1, eval_data=ROWS, reward=only_long_prompts)
    judged = [len(prompt) for prompt in PROMPTS if len(prompt) > 1]
    assert len(judged) < len(PROMPTS)
    assert run.evaluations[0]["eval_reward"] == pytest.approx(sum(judged) / len(judged))


def test_answers_of_an_evaluation_end_at_the_stop_texts_of_the_run(train):
    """Each likeliest answer up to the first of its tokens that is the stop text."""
    answers = likeliest_answers(tiny_model(), PROMPTS)
    stop = answers[0][1]
    lengths = [answer.index(stop) + 1 if stop in answer else len(answer) for answer in answers]
    assert sum(lengths) < sum(map(len, answers))
    text = tiny_tokenizer().decode([stop])
    run = train("grpo", learning_rate=0.0, steps=1, eval_data=ROWS, stop=[text])
    assert run.evaluations[0]["eval_completion_length"] == pytest.approx(sum(lengths) / len(lengths))


def test_answers_of_an_evaluation_end_at_the_stop_tokens_of_the_generation_config(train):
    """Each token that begins a likeliest answer is one: all answers have length 1 and none is cut off."""
    model = tiny_model()
    model.generation_config.eos_token_id = sorted({answer[0] for answer in likeliest_answers(model, PROMPTS)})
    run = train("grpo", model=model, learning_rate=0.0, steps=1, eval_data=ROWS)
    assert run.evaluations[0]["eval_completion_length"] == 1.0
    assert run.evaluations[0]["eval_truncated_share"] == 0.0


@pytest.mark.parametrize("restriction", [{"top_k": 1}, {"top_p": 1e-6}])
def test_nothing_but_the_likeliest_token_is_left_to_sample(train, restriction):
    """Restricted so far, the samples of a prompt are all alike, and are those that an evaluation takes."""
    free = train("grpo", learning_rate=0.0, steps=1, batch_size=8, eval_data=ROWS)
    run = train("grpo", learning_rate=0.0, steps=1, batch_size=8, eval_data=ROWS, **restriction)
    assert run.metrics[0]["zero_spread_share"] == 1.0
    assert run.metrics[0]["reward"] == pytest.approx(run.evaluations[0]["eval_reward"])
    assert run.metrics[0]["completion_length"] == run.evaluations[0]["eval_completion_length"]
    assert free.metrics[0]["zero_spread_share"] < 1.0


def test_an_evaluation_by_loss_leaves_what_a_method_has_worked_out(train):
    """A method without rewards counts how often it was asked for advantages: once a step, evaluated or not."""

    def advantages(rewards, rollouts, state):
        state["asked"] = state.get("asked", 0) + 1
        return rewards

    module = ModuleType("posttrain_method_probe")
    module.__file__ = __file__
    module.posttrain_advantages = hookimpl(advantages)
    module.posttrain_loss = hookimpl(lambda policy: policy.completion.mean)
    probe = from_module(
        module, Card("probe", "0.1.0", "experimental", "A probe.", ("prompt",), ("generation", "teacher"))
    )
    run = train(probe, steps=3, eval_every=1, eval_data=ROWS, reward=None, teacher=tiny_model())
    assert len(run.evaluations) == 4
    assert run.compute.state == {"asked": 3}
