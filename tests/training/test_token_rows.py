"""A run on rows of tokens: transformers' own loss with the same labels, and the same steps as on the texts."""

import pytest
import torch
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

from .conftest import BAD, GOOD, PROMPTS, ROWS


def as_tokens(prompt, completion):
    """What transformers' users write: the tokenizer's numbers, and labels with -100 over the prompt."""
    tokenizer = tiny_tokenizer()
    head, tail = tokenizer(prompt)["input_ids"], tokenizer(completion, add_special_tokens=False)["input_ids"]
    tail = [*tail, tokenizer.eos_token_id]
    return {"input_ids": head + tail, "labels": [-100] * len(head) + tail}


def test_the_first_loss_is_transformers_own(train):
    rows = [as_tokens(p, c) for p, c in zip(PROMPTS, GOOD, strict=True)]
    run = train("sft", data=rows, steps=1, learning_rate=0.0)
    model, total, count = tiny_model("vocabulary", torch.float32), 0.0, 0
    for row in rows:
        labels = torch.tensor([row["labels"]])
        learnt = int((labels[:, 1:] != -100).sum())
        total += float(model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss) * learnt
        count += learnt
    assert run.metrics[0]["loss"] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_tokens_and_texts_train_the_same(train, method):
    if method == "sft":
        rows = [as_tokens(p, c) for p, c in zip(PROMPTS, GOOD, strict=True)]
    else:
        rows = []
        for prompt, chosen, rejected in zip(PROMPTS, GOOD, BAD, strict=True):
            first, second = as_tokens(prompt, chosen), as_tokens(prompt, rejected)
            head = first["labels"].count(-100)
            ids = {"chosen_ids": first["input_ids"][head:], "rejected_ids": second["input_ids"][head:]}
            rows.append({"prompt_ids": first["input_ids"][:head], **ids})
    found = [line["loss"] for line in train(method, data=rows).metrics]
    assert found == [line["loss"] for line in train(method, data=ROWS[method]).metrics]
    assert found[0] != found[-1]
