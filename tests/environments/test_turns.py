"""Turns: what stands between them is what the template writes there, and calls are read in the form of each family."""

import pytest
import torch
from posttrain.data.tokens.turns import Turns
from posttrain.environments import parsing
from posttrain.settings import DataSettings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

#: Templates of our own, each with one trait of the field's: how it ends a turn, shows tools, rewrites earlier turns.
TEMPLATES = {
    "tags": (
        "<|e|>",
        "{% if tools %}[t]{{ tools | tojson }}[/t]{% endif %}{% for m in messages %}<|s|>{{ m.role }}\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}<|e|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|s|>assistant\n{% endif %}",
    ),
    "thinking left out": (
        "<|e|>",
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|s|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.last %}<think>{{ m.reasoning_content or '' }}</think>{% endif %}"
        "{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
        "<|e|>\n{% endfor %}{% if add_generation_prompt %}<|s|>assistant\n{% endif %}",
    ),
    "another end in the middle": (
        "<|r|>",
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|s|>{{ m.role }}\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
        "{{ '<|r|>' if m.role == 'assistant' and loop.last else '<|e|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|s|>assistant\n{% endif %}",
    ),
    "ended by the next turn": (
        "<|u|>",
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
        "{{ '<|s|>' if m.role == 'assistant' else '<|u|>' }}\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}<|s|>\n{% endif %}",
    ),
    "two tokens at the end": (
        "<|e|>",
        "{% for m in messages %}<|s|>{{ m.role }}\n{{ m.content }}<|r|><|e|>{% endfor %}"
        "{% if add_generation_prompt %}<|s|>assistant\n{% endif %}",
    ),
    "words left out beside calls": (
        "<|e|>",
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|s|>{{ m.role }}\n"
        "{% if m.tool_calls %}{% for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
        "{% else %}{{ m.content }}{% endif %}<|e|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|s|>assistant\n{% endif %}",
    ),
}
#: What each writes between a turn of the model and the next, from the token that ended the turn.
EXPECTED = {
    "tags": "\n<|s|>{role}\n{content}<|e|>\n<|s|>assistant\n",
    "another end in the middle": "<|s|>{role}\n{content}<|e|><|s|>assistant\n",
    "ended by the next turn": "\n{content}<|s|>\n",
    "two tokens at the end": "<|s|>{role}\n{content}<|r|><|e|><|s|>assistant\n",
}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {"type": "object"}}}]
ASKED = [{"role": "user", "content": "Tell me 3 plus 4."}]
CALLED = '<tool_call>\n{"name": "add", "arguments": {"a": 3, "b": 4}}\n</tool_call>'
ANSWER = [{"role": "tool", "name": "add", "tool_call_id": "call00000", "content": "7"}]


def tokenizer_of(template):
    """One token a byte, and four that end or begin turns."""
    letters = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocab=letters, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    found = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    found.add_special_tokens({"additional_special_tokens": ["<|s|>", "<|e|>", "<|r|>", "<|u|>"]})
    found.chat_template = template
    return found


@pytest.mark.parametrize("words", ["It is 7.", CALLED, f"Let me see. {CALLED}", "<tool_call>{oops</tool_call>"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_behind_a_sampled_turn_stands_what_the_template_puts_there(name, words):
    stop, template = TEMPLATES[name]
    tokenizer = tokenizer_of(template)
    ending = {"two tokens at the end": "<|r|><|e|>"}.get(name, stop)
    ids = torch.tensor(tokenizer(words + ending, add_special_tokens=False)["input_ids"])
    turns = Turns(tokenizer, DataSettings(), {tokenizer.convert_tokens_to_ids(stop)}, TOOLS)
    message = turns.message(ids)
    if words == CALLED or words.startswith("Let"):
        assert [one["function"] for one in message["tool_calls"]] == [{"name": "add", "arguments": {"a": 3, "b": 4}}]
    answers = ANSWER if message.get("tool_calls") else [{"role": "user", "content": "And 5?"}]
    said, answers = turns.plain(message, answers, ids)
    found = tokenizer.decode(turns.between(ASKED, said, answers, ids).ids)

    (answer,) = answers
    assert found == EXPECTED.get(name, EXPECTED["tags"]).format(role=answer["role"], content=answer["content"])


def test_a_turn_that_no_token_ended_is_closed_by_the_template():
    tokenizer = tokenizer_of(TEMPLATES["tags"][1])
    turns = Turns(tokenizer, DataSettings(), {tokenizer.convert_tokens_to_ids("<|e|>")}, None)
    ids = torch.tensor(tokenizer("It is 7.", add_special_tokens=False)["input_ids"])
    found = turns.between(ASKED, turns.message(ids), [{"role": "user", "content": "b"}], ids)
    assert tokenizer.decode(found.ids) == "<|e|>\n<|s|>user\nb<|e|>\n<|s|>assistant\n"


def test_a_template_that_leaves_thinking_out_is_noticed():
    tokenizer = tokenizer_of(TEMPLATES["thinking left out"][1])
    turns = Turns(tokenizer, DataSettings(), {tokenizer.convert_tokens_to_ids("<|e|>")}, None)
    said = {"role": "assistant", "content": "7", "reasoning_content": "3 and 4"}
    assert turns.rewrites(ASKED, said, [{"role": "user", "content": "b"}])
    plain = tokenizer_of(TEMPLATES["tags"][1])
    assert not Turns(plain, DataSettings(), {0}, None).rewrites(ASKED, said, [{"role": "user", "content": "b"}])


def test_a_template_without_tools_gets_them_in_words_and_their_answers_from_the_user():
    tokenizer = tokenizer_of(
        "{% for m in messages %}<|s|>{{ m.role }}\n{{ m.content }}<|e|>{% endfor %}<|s|>assistant\n"
    )
    turns = Turns(tokenizer, DataSettings(), {tokenizer.convert_tokens_to_ids("<|e|>")}, TOOLS)
    assert turns.tools is None
    ids = torch.tensor(tokenizer(f"{CALLED}<|e|>", add_special_tokens=False)["input_ids"])
    said, answers = turns.plain(turns.message(ids), ANSWER, ids)
    assert said == {"role": "assistant", "content": CALLED}
    assert answers == [{"role": "user", "content": "<tool_response>\n7\n</tool_response>"}]


#: What a family writes for two calls, add(a=3, b=4) and say(text="a, b"), and what marks its form.
WRITTEN = {
    "JSON in tags": '<tool_call>\n{"name": "add", "arguments": {"a": 3, "b": 4}}\n</tool_call>\n<tool_call>'
    '{"name": "say", "arguments": {"text": "a, b"}}</tool_call>',
    "functions in tags": "<tool_call>\n<function=add>\n<parameter=a>\n3\n</parameter>\n<parameter=b>\n4\n</parameter>\n"
    "</function>\n</tool_call><tool_call><function=say><parameter=text>\na, b\n</parameter></function></tool_call>",
    "keys and values": "<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>3</arg_value>\n<arg_key>b</arg_key>"
    "<arg_value>4</arg_value></tool_call><tool_call>say<arg_key>text</arg_key><arg_value>a, b</arg_value></tool_call>",
    "a list": '[TOOL_CALLS][{"name": "add", "arguments": {"a": 3, "b": 4}}, {"name": "say", "arguments": {"text": '
    '"a, b"}}]',
    "names and arguments": '[TOOL_CALLS]add[ARGS]{"a": 3, "b": 4}[TOOL_CALLS]say[ARGS]{"text": "a, b"}',
    "python": '<|tool_call_start|>[add(a=3, b=4), say(text="a, b")]<|tool_call_end|>',
    "quotes of one token": "<|tool_call>call:add{a:3,b:4}<tool_call|>"
    '<|tool_call>call:say{text:<|"|>a, b<|"|>}<tool_call|>',
    "invocations": '<x:invoke name="add"><x:parameter name="a">3</x:parameter><x:parameter name="b">4</x:parameter>'
    '</x:invoke><x:invoke name="say"><x:parameter name="text">a, b</x:parameter></x:invoke>',
    "channels": ' to=functions.add<|channel|>commentary json<|message|>{"a": 3, "b": 4}<|call|><|start|>assistant'
    ' to=functions.say<|channel|>commentary json<|message|>{"text": "a, b"}<|call|>',
    "parts": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n"
    '{"a": 3, "b": 4}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>say\n```json\n'
    '{"text": "a, b"}\n'
    "```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "numbered": '<|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>{"a": 3, "b": 4}<|tool_call_end|>'
    '<|tool_call_begin|>functions.say:1<|tool_call_argument_begin|>{"text": "a, b"}<|tool_call_end|>',
    "bare": '{"name": "add", "parameters": {"a": 3, "b": 4}}; {"name": "say", "parameters": {"text": "a, b"}}',
}


@pytest.mark.parametrize("name", WRITTEN)
def test_calls_are_read_in_each_form(name):
    form = parsing.parser_of(WRITTEN[name])
    message = parsing.parse(WRITTEN[name], form)
    assert [one["function"] for one in message["tool_calls"]] == [
        {"name": "add", "arguments": {"a": 3, "b": 4}},
        {"name": "say", "arguments": {"text": "a, b"}},
    ]
    assert message["content"] == ""
    assert "tool_calls" not in parsing.parse("Just words.", form)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<tool_call>{oops}</tool_call>", "it is no valid JSON"),
        ('<tool_call>{"arguments": {}}</tool_call>', 'expected {"name": ...'),
        ('<tool_call>{"name": "add", "arguments": "3 and 4"}</tool_call>', "its arguments are no valid JSON"),
        ('<tool_call>{"name": "add", "arguments": [3]}</tool_call>', "its arguments are no object"),
        ("[TOOL_CALLS]add[ARGS]3 4", "its arguments are no valid JSON"),
        ("<|tool_call_start|>[add(3, 4)]<|tool_call_end|>", "expected [name(argument=value)]"),
        ("<|tool_call_start|>[add(]<|tool_call_end|>", "expected [name(argument=value)]"),
    ],
)
def test_a_call_that_cannot_be_read_says_why(text, why):
    (one,) = parsing.parse(text, parsing.parser_of(text))["tool_calls"]
    assert why in one["error"]


def test_thinking_is_kept_apart_from_the_answer():
    form = parsing.parser_of("<tool_call>")
    assert parsing.parse("<think>\n3 and 4\n</think>\n\n7", form) == {
        "role": "assistant",
        "content": "7",
        "reasoning_content": "3 and 4",
    }
    channels = "<|channel|>analysis<|message|>3 and 4<|end|><|start|>assistant<|channel|>final<|message|>7"
    found = parsing.parse(channels, parsing.parser_of(WRITTEN["channels"]))
    assert (found["content"], found["reasoning_content"]) == ("7", "3 and 4")
