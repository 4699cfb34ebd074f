"""Which tokens a row becomes and which of them are learnt."""

import pytest
from posttrain.errors import DataError, ModelError, SettingsError


def _one(examples, role="completion"):
    ((sequence,),) = [example.sequences[role] for example in examples]
    return sequence


def _chat(*contents):
    return [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 9, contents, strict=False)]


def test_plain_completion_with_its_end(build, made, text_of, learnt):
    """T1, T2: the final end-of-sequence token is learnt, also where padding is the same token."""
    for pad in ("<pad>", "</s>"):
        tokenizer = build(pad=pad)
        sequence = _one(made([{"prompt": "ab", "completion": "cd"}], "prompt-completion", tokenizer))
        assert text_of(sequence, tokenizer) == "abcd</s>"
        assert sequence.trained.tolist() == [False, False, True, True, True]
        assert learnt(sequence, tokenizer) == "cd</s>"


def test_end_of_sequence_is_neither_doubled_nor_forced(build, made, text_of):
    """T5."""
    tokenizer = build()
    row = {"prompt": "a", "completion": "b</s>"}
    assert text_of(_one(made([row], "prompt-completion", tokenizer)), tokenizer) == "ab</s>"
    off = made([{"prompt": "a", "completion": "b"}], "prompt-completion", tokenizer, end_of_sequence=False)
    assert text_of(_one(off), tokenizer) == "ab"
    assert off.report["without_stop"] == 1
    tokenizer = build(eos=None)
    with pytest.raises(ModelError, match=r"has no end-of-sequence token .*--no-end-of-sequence$"):
        made([{"prompt": "a", "completion": "b"}], "prompt-completion", tokenizer, stop="<|im_end|>")


@pytest.mark.parametrize("prompt", ["ab", "", "<s>ab"])
def test_beginning_of_sequence_exactly_once(build, made, text_of, prompt):
    """T3, T6: once, also where the text writes it; never learnt."""
    tokenizer = build(bos=True)
    sequence = _one(made([{"prompt": prompt, "completion": "cd"}], "prompt-completion", tokenizer))
    assert text_of(sequence, tokenizer) == f"<s>{prompt.removeprefix('<s>')}cd</s>"
    assert sequence.count == 3


def test_a_tokenizer_without_beginning_adds_none(build, made):
    """T4."""
    tokenizer = build()
    sequence = _one(made([{"text": "abc"}], "language-modeling", tokenizer))
    assert sequence.ids.tolist() == tokenizer.convert_tokens_to_ids(["a", "b", "c", "</s>"])
    assert sequence.trained.tolist() == [False, True, True, True]


@pytest.mark.parametrize("offsets", [True, False])
def test_a_merge_over_the_boundary_is_learnt_and_counted(build, made, slow, offsets):
    """T7: 'ab' + 'cd' with the merge 'bc' is a, bc, d; learning begins at the token that holds completion text."""
    tokenizer = build(merges=[("b", "c")])
    tokenizer = tokenizer if offsets else slow(tokenizer)
    rows = [{"prompt": "ab", "completion": "cd"}, {"prompt": "ax", "completion": "cd"}]
    merged, clean = (examples := made(rows, "prompt-completion", tokenizer))
    assert merged.sequences["completion"][0].ids.tolist() == tokenizer.convert_tokens_to_ids(["a", "bc", "d", "</s>"])
    assert merged.sequences["completion"][0].trained.tolist() == [False, True, True, True]
    assert clean.sequences["completion"][0].trained.tolist() == [False, False, True, True, True]
    assert examples.report["boundary_merges"] == 1


def test_slow_and_fast_tokenizers_agree(build, made, slow):
    """Offsets and the comparison of prefixes are two ways to one mask, multi-byte characters included."""
    tokenizer = build("chatml", merges=[("a", "b"), ("c", "d")], bos=True)
    messages = {"messages": _chat("äab", "cdé", "ab", "日本")}
    cases = [([messages], "language-modeling"), ([{"prompt": "aé", "completion": "日d"}], "prompt-completion")]
    for rows, schema in cases:
        fast, plain = _one(made(rows, schema, tokenizer)), _one(made(rows, schema, slow(tokenizer)))
        assert fast.ids.tolist() == plain.ids.tolist()
        assert fast.trained.tolist() == plain.trained.tolist()


@pytest.mark.parametrize(("template", "stop"), [("chatml", "<|im_end|>"), ("marked", "<|im_end|>"), ("llama", "</s>")])
@pytest.mark.parametrize("form", ["messages", "prompt-completion"])
def test_the_last_learnt_token_is_the_stop_token(build, made, text_of, learnt, template, stop, form):
    """T2, T3, T5: of every template, with and without generation markers; exactly one stop, one beginning."""
    tokenizer = build(template, bos=True)
    if form == "messages":
        examples = made([{"messages": _chat("hi", "yo")}], "language-modeling", tokenizer, stop)
    else:
        row = {"prompt": _chat("hi"), "completion": [{"role": "assistant", "content": "yo"}]}
        examples = made([row], "prompt-completion", tokenizer, stop)
    sequence = _one(examples)
    assert learnt(sequence, tokenizer).replace(" ", "") == f"yo{stop}"
    assert text_of(sequence, tokenizer).endswith(stop)
    assert sequence.trained[-1]
    assert text_of(sequence, tokenizer).count("<s>") == (template == "llama")
    assert examples.report["without_stop"] == 0


@pytest.mark.parametrize("template", ["chatml", "marked"])
def test_every_assistant_turn_and_nothing_else(build, made, learnt, template):
    tokenizer = build(template)
    row = {"messages": _chat("q1", "a1", "q2", "a2", "q3")}
    assert learnt(_one(made([row], "language-modeling", tokenizer, "<|im_end|>")), tokenizer) == (
        "a1<|im_end|>a2<|im_end|>"
    )


def test_train_on(build, made, learnt):
    tokenizer = build("chatml")
    row = {"messages": _chat("q1", "a1", "q2", "a2")}
    pair = {"prompt": row["messages"][:3], "completion": row["messages"][3:]}

    def of(row, schema, choice):
        return learnt(_one(made([row], schema, tokenizer, "<|im_end|>", train_on=choice)), tokenizer)

    assert of(row, "language-modeling", "completion") == "a2<|im_end|>"
    assert of(pair, "prompt-completion", None) == "a2<|im_end|>"
    assert of(pair, "prompt-completion", "assistant") == "a1<|im_end|>a2<|im_end|>"
    whole = of(row, "language-modeling", "all")  # but the first token
    assert whole == (
        "user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
        "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\na2<|im_end|>"
    )
    with pytest.raises(DataError, match=r"ends with a 'user' message, .* Or choose: --train-on assistant$"):
        of({"messages": row["messages"][:3]}, "language-modeling", "completion")


def test_tool_results_are_not_learnt(build, made, learnt):
    """M10: a completion of several messages trains on the assistant's alone."""
    tokenizer = build("chatml")
    completion = [
        {"role": "assistant", "content": "call"},
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": "done"},
    ]
    row = {"prompt": _chat("q"), "completion": completion}
    sequence = _one(made([row], "prompt-completion", tokenizer, "<|im_end|>"))
    assert learnt(sequence, tokenizer) == "call<|im_end|>done<|im_end|>"


def test_templates_that_rewrite_earlier_turns(build, made, learnt):
    """T10: what a template removes from an earlier answer must not shift the mask; if unclear, it is refused."""
    tokenizer = build("thinking")
    messages = _chat("q1", "think~a1", "q2", "deep~a2")
    pair = {"prompt": messages[:3], "completion": messages[3:]}
    assert learnt(_one(made([pair], "prompt-completion", tokenizer, "<|im_end|>")), tokenizer) == "deep~a2<|im_end|>"
    with pytest.raises(DataError) as caught:
        made([{"messages": messages}], "language-modeling", tokenizer, "<|im_end|>")
    assert str(caught.value) == (
        "data row 1: the chat template rewrites message 2 depending on what follows, so its tokens cannot be told "
        "apart. Give a template with {% generation %} markers with --chat-template FILE, or one answer per row "
        "(prompt, completion)."
    )


def test_template_that_opens_the_answer_otherwise(build, made, learnt):
    """A generation prompt with a thought that the finished answer lacks: counted, and only the answer learnt."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n(think){% endif %}"
    )
    tokenizer = build(template)
    row = {"prompt": _chat("q"), "completion": [{"role": "assistant", "content": "a"}]}
    examples = made([row], "prompt-completion", tokenizer, "<|im_end|>")
    assert learnt(_one(examples), tokenizer) == "a<|im_end|>"
    assert examples.report["template_mismatches"] == 1


def test_a_template_that_refuses_a_row_is_an_error_with_the_row(build, made):
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}, *_chat("q", "a")[1:]]
    with pytest.raises(DataError) as caught:
        made([{"messages": messages}], "language-modeling", build("llama"))
    assert str(caught.value) == "data row 1: the chat template refuses these messages: roles must alternate."


def test_tools_reach_the_template_and_none_equals_empty(build, made, text_of):
    """T9, T15: an empty list renders as no tools; a tool is rendered key by key as given."""
    tokenizer = build("tools")
    row = {"messages": _chat("q", "a")}
    tool = {"name": "add", "parameters": {"x": None}}
    texts = [
        text_of(_one(made([{**row, **more}], "language-modeling", tokenizer, "<|im_end|>")), tokenizer)
        for more in ({}, {"tools": None}, {"tools": []}, {"tools": [tool]})
    ]
    assert texts[0] == texts[1] == texts[2]
    assert texts[3] == 'TOOLS[{"name": "add", "parameters": {"x": null}}]\n' + texts[0]


def test_chat_template_from_a_file(build, made, text_of, tmp_path):
    """T19: the tokenizer's own template is not touched."""
    tokenizer = build("chatml")
    path = tmp_path / "mine.jinja"
    path.write_text("{% for m in messages %}<{{ m['content'] }}>{% endfor %}")
    row = {"messages": _chat("q", "a")}
    examples = made([row], "language-modeling", tokenizer, chat_template=str(path))
    assert text_of(_one(examples), tokenizer) == "<q><a>"
    assert tokenizer.chat_template == build("chatml").chat_template
    with pytest.raises(SettingsError, match=r"^chat-template 'no\.jinja': cannot be read"):
        made([row], "language-modeling", tokenizer, chat_template="no.jinja")


def test_a_tokenizer_that_gives_no_ids_is_refused(build, made, slow):
    """T17."""
    broken = slow(build())
    broken._tokenizer = type("Broken", (), {"__call__": lambda self, text, **_: {"input_ids": []}})()
    broken.eos_token_id = broken.bos_token_id = None
    broken.convert_tokens_to_ids = lambda text: 0
    with pytest.raises(ModelError, match="turns 'Hello world' into no token at all"):
        made([{"text": "a"}], "language-modeling", broken)
