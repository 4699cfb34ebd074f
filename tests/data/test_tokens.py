"""Which tokens a row becomes and which of them are learnt."""

import pytest
from posttrain.data.tokens.encode_one import encode_answer, encode_prompt
from posttrain.data.tokens.notes import notes_of, within_positions
from posttrain.errors import DataError, ModelError, SettingsError
from posttrain.settings import Settings

from .conftest import CHATML


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
        "data row 1: the chat template leaves out or rewrites text of message 2 ('think~a1'). 1 of 1 examples lose "
        "something in this way, more than the share of 0.01 that max-lost allows. Give a template that writes the text "
        "as it is, with --chat-template FILE, or remove the rows. A template that keeps it in the last answer alone "
        "learns it from one answer at a time: --train-on each-turn."
    )


def test_each_turn_is_an_example_as_the_model_would_have_written_it(build, made, text_of, learnt):
    tokenizer = build("thinking")
    messages = _chat("q1", "think~a1", "q2", "deep~a2")
    pair = {"prompt": messages[:1], "completion": messages[1:]}
    for row, schema in (({"messages": messages}, "language-modeling"), (pair, "prompt-completion")):
        examples = made([row], schema, tokenizer, "<|im_end|>", train_on="each-turn")
        assert [learnt(e.sequences["completion"][0], tokenizer) for e in examples] == [
            "think~a1<|im_end|>",
            "deep~a2<|im_end|>",
        ]
        assert "think~" not in text_of(examples[1].sequences["completion"][0], tokenizer)
        assert examples.report["rows"] == 1
    with pytest.raises(SettingsError, match=r"^train-on 'each-turn' needs messages, but data row 1 has text"):
        made([{"text": "a"}], "language-modeling", tokenizer, train_on="each-turn")
    pairs = {"prompt": messages[:1], "chosen": messages[1:2], "rejected": messages[3:]}
    with pytest.raises(SettingsError, match=r"^train-on 'each-turn' does not suit schema 'preference'"):
        made([pairs], "preference", tokenizer, train_on="each-turn")


def test_rows_that_lose_something_are_left_out_up_to_a_share(build, made):
    """The template strips what stands before a tilde in all answers but the last."""
    tokenizer = build("thinking")
    rows = [{"messages": _chat("q", "a", "q", f"b{n}")} for n in range(3)]
    rows.insert(1, {"messages": _chat("q", "think~a", "q", "b")})
    examples = made(rows, "language-modeling", tokenizer, "<|im_end|>", max_lost=0.25)
    assert len(examples) == 3
    assert examples.report["dropped"] == {"text of an answer lost in the chat template": 1}
    with pytest.raises(
        DataError, match=r"^data row 2: .* 1 of 4 examples .* more than the share of 0\.2 that max-lost"
    ):
        made(rows, "language-modeling", tokenizer, "<|im_end|>", max_lost=0.2)
    with pytest.raises(SettingsError, match=r"^max-lost is 2, expected a share from 0 to 1\.$"):
        Settings(max_lost=2.0).check()


#: Writes a thought, perhaps an empty one, before every answer.
EMPTY_THOUGHT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}({{ m.reasoning_content or '' }}){% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% if brief %}()brief:{% endif %}{% endif %}"
)


def test_what_the_template_writes_before_every_answer_is_learnt_on_request(build, made, learnt):
    tokenizer = build(EMPTY_THOUGHT)
    thoughtful = [*_chat("q1"), {"role": "assistant", "content": "a", "reasoning_content": "why"}]
    rows = [{"messages": _chat("q1", "a1", "q2", "a2")}, {"messages": thoughtful}]

    def of(choice):
        examples = made(rows, "language-modeling", tokenizer, "<|im_end|>", learn_scaffold=choice)
        return [learnt(e.sequences["completion"][0], tokenizer) for e in examples]

    assert of(False) == ["a1<|im_end|>a2<|im_end|>", "(why)a<|im_end|>"]
    assert of(True) == ["()a1<|im_end|>()a2<|im_end|>", "(why)a<|im_end|>"]


def test_variables_of_the_chat_template(build, made, text_of):
    """Of the run, and of one row, whose own go first."""
    tokenizer = build(EMPTY_THOUGHT)
    rows = [{"prompt": _chat("q")}, {"prompt": _chat("q"), "chat_template_kwargs": {"brief": False}}]
    for given, ends in (("true", [True, False]), ("false", [False, False])):
        examples = made(rows, "prompt", tokenizer, chat_template_kwargs={"brief": given})
        texts = [text_of(e.sequences["prompt"][0], tokenizer) for e in examples]
        assert [text.endswith("()brief:") for text in texts] == ends
    as_text = made([{**rows[0], "chat_template_kwargs": '{"brief": true}'}], "prompt", tokenizer)
    assert text_of(as_text[0].sequences["prompt"][0], tokenizer).endswith("()brief:")
    with pytest.raises(DataError, match=r"column 'chat_template_kwargs' is 'brief', expected an object with variables"):
        made([{**rows[0], "chat_template_kwargs": "brief"}], "prompt", tokenizer)


def test_prompts_of_a_run_have_the_variables_too(build):
    """What is encoded while a run is under way: a teacher's prompt, an answer of the data."""
    tokenizer, settings = build(EMPTY_THOUGHT), Settings().data
    _, text = encode_prompt(_chat("q"), tokenizer, settings, set(), {"chat_template_kwargs": {"brief": True}})
    assert text.endswith("()brief:")
    row = {"prompt": _chat("q"), "completion": "a", "chat_template_kwargs": {"brief": True}}
    prompt, answer, _ = encode_answer(row, tokenizer, settings, set())
    assert tokenizer.decode(prompt).endswith("assistant\n()")
    assert tokenizer.decode(answer) == "a<|im_end|>"


def test_pairs_of_the_same_tokens_are_left_out(build, made):
    """Given so, and made so by the cut."""
    rows = [
        {"prompt": "a", "chosen": "same", "rejected": "same"},
        {"prompt": "a", "chosen": "x" * 20 + "b", "rejected": "x" * 20 + "c"},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
    ]
    examples = made(rows, "preference", build(), max_length=10)
    assert len(examples) == 1
    assert examples.report["dropped"] == {"chosen and rejected are the same tokens": 2}


def test_what_surprises_in_a_report_is_said(build, made):
    """The end of an answer at which generation does not stop, rows that were left out, learnt positions."""
    tokenizer = build("chatml")
    examples = made([{"messages": _chat("q", "a")}], "language-modeling", tokenizer, "</s>")
    (note,) = notes_of(examples.report, tokenizer, {tokenizer.convert_tokens_to_ids("</s>")})
    assert note.startswith("1 answers do not end with a token at which generation stops")
    assert "they end with '<|im_end|>', and generation stops at </s>." in note
    assert not notes_of(
        made([{"messages": _chat("q", "a")}], "language-modeling", tokenizer, "<|im_end|>").report, 0, 0
    )
    pair = {"prompt": "a", "chosen": "b", "rejected": "b"}
    examples = made([pair, {**pair, "rejected": "c"}], "preference", tokenizer)
    assert notes_of(examples.report, tokenizer, set()) == [
        "1 of 2 rows left out: chosen and rejected are the same tokens"
    ]
    assert within_positions(Settings().data, 2048) == (Settings().data, [])
    shorter, (said,) = within_positions(Settings().data, 64)
    assert shorter.max_length == 64
    assert said == "rows are cut to 64 tokens: the model has learnt no more positions"


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


SYSTEM_LOST = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")


@pytest.mark.parametrize("schema", ["language-modeling", "prompt"])
@pytest.mark.parametrize(
    ("template", "row", "kind", "text"),
    [
        (SYSTEM_LOST, [{"role": "system", "content": "be brief"}], "system prompt", "of message 1 ('be brief')"),
        ("chatml", [], "tools", "shows no tools ('add')"),
    ],
)
def test_a_system_prompt_and_tools_that_the_template_ignores_are_lost(build, made, schema, template, row, kind, text):
    """One row of four loses something: left out and counted, or named where it is more than max-lost allows."""
    tokenizer = build(template)
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}] if kind == "tools" else None
    asked = [*row, {"role": "user", "content": "q"}]

    def full(some):
        return {"prompt": some} if schema == "prompt" else {"messages": [*some, {"role": "assistant", "content": "a"}]}

    rows = [full(asked) | ({"tools": tools} if tools else {})] + [full(asked[-1:])] * 3
    prepared = made(rows, schema, tokenizer, "<|im_end|>", max_lost=0.5)
    assert len(prepared) == 3
    assert prepared.report["dropped"] == {f"{kind} lost in the chat template": 1}
    with pytest.raises(DataError) as refused:
        made(rows, schema, tokenizer, "<|im_end|>")
    assert str(refused.value).startswith("data row 1: the chat template ")
    assert text in str(refused.value)
    kept = build("tools") if kind == "tools" else build("chatml")
    assert len(made(rows, schema, kept, "<|im_end|>")) == 4
