"""Turns of episodes behind published templates: what is appended is what the template writes for the conversation.

The right text comes from rendering all of it with transformers alone; what the model wrote is the template's own text
of the turn, up to the token that ends it.
"""

import re

import pytest
import torch
from posttrain.data.tokens.turns import Turns
from posttrain.settings import DataSettings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

#: Template -> the token that ends a turn of the model.
ENDS = {
    **dict.fromkeys(("qwen2_5", "qwen3", "qwen3_5_think", "qwen3_6", "qwen3_8", "qwen3_instruct_2507"), "<|im_end|>"),
    **dict.fromkeys(("lfm2_2_5", "lfm2_v2", "nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra"), "<|im_end|>"),
    **{"llama3_1": "<|eot_id|>", "llama3_2": "<|eot_id|>", "qwen3_vl": "<|im_end|>", "muse_glimmer": "<|eot|>"},
}
SPECIAL = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?s>|<(?:bos|eos|pad)>")
PARAMETERS = {name: {"type": "integer", "description": "A number."} for name in ("a", "b")}
TOOL = {"name": "add", "description": "Add.", "parameters": {"type": "object", "properties": PARAMETERS}}
TOOLS = [{"type": "function", "function": TOOL}]
ASKED = {"role": "user", "content": "What is 3 plus 4?"}


def call(number, a, b):
    arguments = {"a": a, "b": b}
    return {"type": "function", "id": f"call{number:05d}", "function": {"name": "add", "arguments": arguments}}


def result(number, text):
    return {"role": "tool", "name": "add", "tool_call_id": f"call{number:05d}", "content": text}


def said(text, *calls):
    return {"role": "assistant", "content": text} | ({"tool_calls": list(calls)} if calls else {})


#: What the model says, and what answers it.
SHAPES = {
    "words": (said("It is seven."), [{"role": "user", "content": "And 5 plus 6?"}]),
    "a call": (said("", call(0, 3, 4)), [result(0, "7")]),
    "words and a call": (said("Let me see.", call(0, 3, 4)), [result(0, "7")]),
    "two calls": (said("", call(0, 3, 4), call(1, 5, 6)), [result(0, "7"), result(1, "11")]),
    "an error": (said("", call(0, 3, 4)), [result(0, "Error: ValueError: no")]),
}
#: These take one call a message.
SINGLE = ("llama3_1", "llama3_2")


def tokenizer_of(template):
    letters = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocab=letters, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    found = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    found.add_special_tokens({"additional_special_tokens": sorted(set(SPECIAL.findall(template)))})
    found.chat_template = template
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ENDS)
def test_what_is_appended_is_what_the_template_writes(published, name, shape):
    if name in SINGLE and shape == "two calls":
        pytest.xfail("the template takes one call a message, and says so")
    tokenizer, end = tokenizer_of(published[name]), ENDS[name]
    answer, observed = SHAPES[shape]
    tools = None if shape == "words" else TOOLS

    def text(messages, ask=False):
        return tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=ask, tokenize=False)

    done = text([ASKED, answer])
    asked = text([ASKED], True)
    start = next((i for i, (a, b) in enumerate(zip(asked, done, strict=False)) if a != b), len(asked))
    ends = [match.end() for match in re.finditer(re.escape(end), done)]
    if not ends or ends[-1] <= start:  # one family ends a turn that calls with another token
        end = SPECIAL.findall(done)[-1]
        ends = [done.rindex(end) + len(end)]
    ids = torch.tensor(tokenizer(done[start : ends[-1]], add_special_tokens=False)["input_ids"])
    turns = Turns(tokenizer, DataSettings(), {tokenizer.convert_tokens_to_ids(end)}, tools)
    message = turns.message(ids)
    wanted = [one["function"] for one in answer.get("tool_calls", [])]
    assert [one["function"] for one in message.get("tool_calls", [])] == wanted
    shown, answers = turns.plain(message, observed, ids)
    found = tokenizer.decode(turns.between([ASKED], shown, answers, ids).ids)
    whole = text([ASKED, answer, *observed], ask=True)
    assert whole.endswith(end + found)
    assert observed[-1]["content"] in found
