"""Prompts reworded for a teacher."""

import pytest
from posttrain import prompts

ASKED = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": [{"type": "text", "text": "2 + "}, {"type": "text", "text": "3?"}], "name": "Ada"},
]


def test_text_and_the_last_question_of_messages():
    assert prompts.reworded("q", "<{prompt}> {hint}", hint="h") == "<q> h"
    found = prompts.reworded(ASKED, "<{prompt}> {hint}", hint="h")
    assert found[:3] == ASKED[:3]
    assert found[3] == {"role": "user", "content": "<2 + 3?> h", "name": "Ada"}


def test_what_follows_the_last_question_stays():
    after = [*ASKED, {"role": "tool", "content": "5"}]
    found = prompts.reworded(after, "{prompt}!")
    assert (found[3]["content"], found[4]) == ("2 + 3?!", after[4])
    assert prompts.reworded(ASKED[:1], "{prompt}!") == [{"role": "system", "content": "Be brief.!"}]


def test_braces_of_the_prompt_are_no_places():
    assert prompts.reworded("f{x}", "{prompt} {hint}", hint="{prompt}") == "f{x} {prompt}"
    assert prompts.reworded("f", "{prompt} {{}}") == "f {}"


def test_plain_text_of_a_column():
    assert prompts.plain_text("a") == "a"
    assert prompts.plain_text(ASKED[:2]) == "Be brief.\n\nHi"
    assert prompts.plain_text(5) == "5"


@pytest.mark.parametrize("template", ["{", "{prompt} {other}", "{prompt} {}", "{prompt.nothing}"])
def test_templates_that_cannot_be_filled(template):
    with pytest.raises(ValueError, match=r"named has braces around something other than \{prompt\}"):
        prompts.check_template("named", template, "prompt")


def test_templates_without_a_place():
    prompts.check_template("named", "{prompt} {{x}}", "prompt")
    with pytest.raises(ValueError, match=r"named has no \{hint\}\. Expected text with \{prompt\} and \{hint\}\."):
        prompts.check_template("named", "{prompt}", "prompt", "hint")
