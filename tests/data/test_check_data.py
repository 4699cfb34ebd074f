"""What check-data says to programs, and that it reads rows as a run would."""

from posttrain.data import examples_as_data
from posttrain.data.check import check_data
from posttrain.settings import Settings


def test_examples_for_programs(tokenizer, write):
    """Text, ids and learnt spans, of which ids and text agree."""
    turns = [("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    file = write("rows.jsonl", row, row)
    stop = {tokenizer.convert_tokens_to_ids("<|im_end|>")}
    report, prepared = check_data([file], ("language-modeling",), Settings().data, tokenizer, stop)
    first, second = examples_as_data(prepared, tokenizer, 5)
    assert (first["row"], second["row"]) == (1, 2)
    (sequence,) = first["sequences"]["completion"]
    assert [span["text"] for span in sequence["spans"]] == ["a1<|im_end|>", "a2<|im_end|>"]
    assert tokenizer.decode(sequence["ids"]) == sequence["text"]
    assert sequence["text"].endswith("<|im_start|>assistant\na2<|im_end|>")
    for span in sequence["spans"]:
        assert tokenizer.decode(sequence["ids"][span["start"] : span["end"]]) == span["text"]
    assert len(examples_as_data(prepared, tokenizer, 1)) == 1
    assert report["notes"] == []


def test_what_the_template_loses_is_in_the_report(tokenizer, write):
    answer = {"role": "assistant", "content": "a"}
    asked = {"role": "user", "content": "q"}
    rows = [{"messages": [asked, answer]}] * 3 + [{"messages": [asked, {**answer, "reasoning_content": "why"}]}]
    settings = Settings(max_lost=0.5).data
    stop = {tokenizer.convert_tokens_to_ids("<|im_end|>")}
    report, _ = check_data([write("a.jsonl", *rows)], ("language-modeling",), settings, tokenizer, stop)
    assert report["tokens"]["dropped"] == {"reasoning of an answer lost in the chat template": 1}
    assert report["notes"] == ["1 of 4 rows left out: reasoning of an answer lost in the chat template"]
