"""Runs a row through the product with a chat template, and judges what comes out."""

from dataclasses import dataclass
from itertools import groupby

from posttrain.data import prepare, read_rows
from posttrain.errors import PosttrainError
from posttrain.settings import Settings
from template_oracle import Oracle, Refused
from template_shapes import TOOLS
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def build_tokenizer(oracle):
    """One token a byte and one for each special token of the template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    special = sorted(oracle.markup | set(oracle.names.values()))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **oracle.names)
    tokenizer.chat_template = oracle.source
    return tokenizer


@dataclass
class Outcome:
    """What became of one row."""

    kind: str
    """exact, refused, wrong, or over-refused: refused though the template takes it."""
    text: str = ""


def judge(oracle, tokenizer, shape):
    """Compare what the product learns of a row with what the model would have to write."""
    tools = TOOLS if shape.tools else None
    try:
        right = oracle.expected(shape, tools)
    except Refused as error:
        right = str(error)
    try:
        found = learnt(tokenizer, oracle.stops, shape)
    except PosttrainError as error:
        return Outcome("refused" if isinstance(right, str) else "over-refused", str(error))
    if found == right:
        return Outcome("exact")
    return Outcome("wrong", f"learnt {found!r}, right {right!r}")


def learnt(tokenizer, stops, shape):
    """The texts that the product learns of a row: each run of trained tokens."""
    settings = Settings(max_length=100_000, **shape.options)
    rows = read_rows([shape.made()], ("prompt-completion",) if shape.prompt else ("language-modeling",), settings.data)
    examples = prepare(rows, tokenizer, settings.data, set(tokenizer.convert_tokens_to_ids(stops)), None)
    texts = []
    for example in examples:
        (sequence,) = example.sequences["completion"]
        marked = zip(sequence.ids.tolist(), sequence.trained.tolist(), strict=True)
        runs = groupby(marked, key=lambda pair: pair[1])
        texts += [tokenizer.decode([token for token, _ in run]) for trained, run in runs if trained]
    return texts


__all__ = ["Oracle", "Outcome", "build_tokenizer", "judge", "learnt"]
