"""A model of a few thousand parameters, a tokenizer of single letters, and training rows of every schema."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from posttrain.catalogue.cards import Card
from posttrain.catalogue.methods import Method
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    PreTrainedTokenizerFast,
)

LETTERS = "abcdefgh "
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
#: Prompt, right answer, wrong answer, of unequal lengths: letters of the first half of the alphabet are right.
_ANSWERS = [
    (letter * (1 + place % 3), letter * (2 + place % 2), other * (1 + place % 4))
    for place, (letter, other) in enumerate(zip("abcdabcd", "efghhgfe", strict=True))
]
#: A chat template, for the schemas that are conversations.
_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token a letter; ``</s>`` ends a sequence."""
    vocabulary = {token: place for place, token in enumerate([*_SPECIAL, *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=_TEMPLATE,
    )


#: Head of a model -> its class.
_KINDS: dict[str, Any] = {
    "vocabulary": LlamaForCausalLM,
    "reward-head": LlamaForSequenceClassification,
    "step-head": LlamaForTokenClassification,
}


def head_of(method: Method) -> str:
    """Return the tiny model's head for a method with its default options, as ``tiny_model`` takes it."""
    needs = [head for head in ("reward-head", "step-head") if method.card.needs_now(head, method.config({}))]
    return needs[0] if needs else "vocabulary"


def tiny_model(
    head: str = "vocabulary", dtype: torch.dtype = torch.float32, seed: int = 1234, layers: int = 2, heads: int = 2
) -> Any:
    """Build the same model each time for a seed; no global random state changes.

    ``head`` is "vocabulary", or the card's need: "reward-head" or "step-head".
    """
    config = LlamaConfig(
        vocab_size=len(_SPECIAL) + len(LETTERS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=min(2, heads),
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,  # large enough for an adapter under the frozen head to change the logits
    )
    config.num_labels = 2 if head == "step-head" else 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: torch.nn.Module = _KINDS[head](config)
    return model.to(dtype)


def tiny_rows(card: Card) -> list[dict[str, Any]]:
    """Return eight rows of the card's first schema, in which letters of the first half of the alphabet are right."""
    return [_ROWS[card.schemas[0]](place % 2 == 0, *row) for place, row in enumerate(_ANSWERS)]


#: Schema -> a function that makes a row: whether it shows the right answer, prompt, right answer, wrong answer.
_ROWS: dict[str, Callable[[bool, str, str, str], dict[str, Any]]] = {
    "language-modeling": lambda right, ask, good, bad: {"text": ask + good},
    "prompt-completion": lambda right, ask, good, bad: {"prompt": ask, "completion": good},
    "prompt": lambda right, ask, good, bad: {
        "prompt": ask,
        "completion": good,
        "privileged_context": good,
        "feedback": bad,
    },
    "preference": lambda right, ask, good, bad: {
        "prompt": ask,
        "chosen": good,
        "rejected": bad,
        "chosen_score": 1.0,
        "rejected_score": 0.0,
        "tie": False,
        "gold": good,
    },
    "unpaired-preference": lambda right, ask, good, bad: _judged(right, ask, good, bad) | {"label": right},
    "ranked": lambda right, ask, good, bad: {
        "prompt": ask,
        "completions": [good, good + bad, bad],
        "scores": [1.0, 0.5, 0.0],
    },
    "scored": lambda right, ask, good, bad: (
        _judged(right, ask, good, bad) | {"score": float(right), "group_scores": [1.0, 0.0]}
    ),
    "stepwise": lambda right, ask, good, bad: {"prompt": ask, "completions": [good, bad], "labels": [True, False]},
    "forget-retain": lambda right, ask, good, bad: {
        "forget": {"prompt": ask, "completion": bad},
        "alternative": {"prompt": ask, "completion": good},
        "retain": {"prompt": ask, "completion": good},
    },
    "trajectory": lambda right, ask, good, bad: {
        "messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": good}],
        "score": 1.0,
    },
}


def _judged(right: bool, ask: str, good: str, bad: str) -> dict[str, Any]:
    return {"prompt": ask, "completion": good if right else bad}


def count_of_a(prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
    """Reward of the tiny online task: the share of the letter a among the first four letters."""
    return [completion[:4].count("a") / 4 for completion in completions]


def more_of_a(prompts: list[Any], firsts: list[str], seconds: list[str], images: Any = None) -> list[float]:
    """Judge of the tiny online task: more of the letter a among the first four letters is better, whatever is shown."""
    pairs = zip(count_of_a(prompts, firsts), count_of_a(prompts, seconds), strict=True)
    return [0.5 if one == other else float(one > other) for one, other in pairs]


#: A place among the eight rows and a text, as the inputs of a model.
Encode = Callable[[int, str], dict[str, torch.Tensor]]


def encode_text(place: int, text: str) -> dict[str, torch.Tensor]:
    """The tiny tokenizer's ``input_ids (1, L)`` of a text; all rows are read in the same way."""
    del place
    ids = torch.tensor([tiny_tokenizer().encode(text, add_special_tokens=False)])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def answer_scores(model: Any, head: str, encode: Encode = encode_text) -> list[tuple[float, float]]:
    """Score the right and the wrong answer to each prompt with the model, computed without the core.

    Log-prob of the answer given the prompt; under a reward head the score of the whole text, under a head for steps the
    log-odds that the answer is a good step.
    """
    with _evaluating(model):
        return [
            (
                _answer_score(model, partial(encode, place), ask, good, head),
                _answer_score(model, partial(encode, place), ask, bad, head),
            )
            for place, (ask, good, bad) in enumerate(_ANSWERS)
        ]


def teacher_gap(model: Any, teacher: Any, encode: Encode = encode_text) -> float:
    """Compute the mean KL(teacher || model) per token, in nats, over right and wrong answers; without the core."""
    gaps = []
    with _evaluating(model), _evaluating(teacher):
        for place, (ask, good, bad) in enumerate(_ANSWERS):
            asked = encode(place, ask)["input_ids"].shape[1]
            for text in (good, bad):
                inputs = encode(place, ask + text)  # input_ids (1, L)
                ours, theirs = (m(**inputs).logits[0, asked - 1 :].log_softmax(-1) for m in (model, teacher))
                gaps.append((theirs.exp() * (theirs - ours)).sum(-1).mean().item())
    return sum(gaps) / len(gaps)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    with torch.no_grad():
        yield
    model.train(training)


def _answer_score(
    model: Any, encode: Callable[[str], dict[str, torch.Tensor]], ask: str, answer: str, head: str
) -> float:
    steps = head == "step-head"
    text = ask + answer + ("\n" if steps else "</s>")
    inputs = encode(text)
    logits = model(**inputs).logits[0]
    if steps:
        return (logits[-1, 1] - logits[-1, 0]).item()
    if head == "reward-head":
        return logits[0].item()
    logps = logits[:-1].log_softmax(-1)  # (L-1, V)
    chosen = logps.gather(1, inputs["input_ids"][0, 1:, None])[:, 0]  # (L-1,)
    return chosen[encode(ask)["input_ids"].shape[1] - 1 :].sum().item()
