"""Tiny byte-level tokenizers whose every merge is written down, and templates of the shapes that are in use."""

import json

import pytest
from posttrain.data import prepare, read_rows
from posttrain.settings import Settings
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: The stop token lies outside the generation block, as in several published templates.
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: Writes <s> itself, refuses two turns of one role, and puts a space before the stop token.
LLAMA = (
    "<s>{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}[U]{{ m['content'] }}[A]{% else %}{{ m['content'] }} </s>{% endif %}{% endfor %}"
)
#: Removes thoughts from all answers but the last one.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] if loop.last else m['content'].split('~')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = "{% if tools is not none %}TOOLS{{ tools | tojson }}\n{% endif %}" + CHATML
TEMPLATES = {"chatml": CHATML, "marked": MARKED, "llama": LLAMA, "thinking": THINKING, "tools": TOOLS}
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<pad>"]


def _build(template=None, merges=(), bos=False, pad="<pad>", eos="</s>"):
    """A tokenizer with one token per byte, the ``merges`` given as pairs of strings, and the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(alphabet)}
    for first, second in merges:
        vocabulary[first + second] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=eos, pad_token=pad, bos_token="<s>" if bos else None
    )
    tokenizer.chat_template = TEMPLATES.get(template, template)
    return tokenizer


class Slow:
    """The same tokenizer without offsets, as those written in Python are."""

    is_fast = False

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __call__(self, text, return_offsets_mapping=False, **options):
        assert not return_offsets_mapping, "a slow tokenizer has no offsets"
        return self._tokenizer(text, **options)

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)


@pytest.fixture
def tokenizer():
    return _build("chatml")


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file of lines (objects become JSON) and return its name, relative to the current folder."""
    monkeypatch.chdir(tmp_path)

    def make(name, *lines):
        data = b"".join(
            line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode() + b"\n"
            for line in lines
        )
        (tmp_path / name).write_bytes(data)
        return name

    return make


def _made(rows, schema, tokenizer, stop="</s>", cache=None, **options):
    """Prepared examples of ``rows``; the stop tokens are named by their text."""
    settings = Settings(**{"max_length": 1000, **options})
    stop_ids = {tokenizer.convert_tokens_to_ids(stop)}
    accepted = (schema,) if isinstance(schema, str) else schema
    return prepare(read_rows(rows, accepted, settings.data), tokenizer, settings.data, stop_ids, cache)


def _text_of(sequence, tokenizer):
    """The whole sequence as text, special tokens included."""
    return tokenizer.decode(sequence.ids.tolist(), skip_special_tokens=False)


def _learnt(sequence, tokenizer):
    """Text of the trained tokens."""
    return tokenizer.decode(sequence.ids[sequence.trained].tolist(), skip_special_tokens=False)


@pytest.fixture
def build():
    return _build


@pytest.fixture
def made():
    return _made


@pytest.fixture
def text_of():
    return _text_of


@pytest.fixture
def learnt():
    return _learnt


@pytest.fixture
def slow():
    return Slow
