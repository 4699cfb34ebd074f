"""Chat templates of others: what takes too long, makes too much or divides by zero is one line that names the row."""

import resource
import time

import pytest
from posttrain.data.tokens import templates
from posttrain.data.tokens.templates import Templates
from posttrain.errors import DataError
from posttrain.servers.memory_limit import memory_limit
from posttrain.servers.time_limit import OutOfTime, time_limit
from posttrain.settings import DataSettings
from posttrain_testkit.tiny import tiny_tokenizer

MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}x"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (LOOP, "row 3: the chat template has not ended after 0.5 seconds. Give another: --chat-template FILE"),
        (
            "{{ 'x' * 5000000 }}",
            "row 3: the chat template makes 5000000 characters of these messages, expected at most",
        ),
        ("{{ 1 / 0 }}", "row 3: the chat template refuses these messages: division by zero."),
        (
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "row 3: the chat template refuses these messages: maximum rec",
        ),
        ("{{ 'x' * (10 ** 18) }}", "row 3: the chat template needs more than 1 GiB of memory. Give another: --chat-t"),
        ("{{ 'x' * (10 ** 10) }}", "row 3: the chat template needs more than 1 GiB of memory"),
        ("{{ '%9999999999d' % 1 }}", "row 3: the chat template needs more than 1 GiB of memory"),
        ("{{ range(10 ** 9) }}", "row 3: the chat template refuses these messages: Range too big"),
        (
            "{{ messages.__class__.__mro__[1].__subclasses__() }}",
            "refuses these messages: access to attribute '__class__'",
        ),
        ("{% set x = messages.append(1) %}", "refuses these messages: access to attribute 'append'"),
    ],
)
def test_what_a_template_may_not_take(template, text, monkeypatch, tmp_path):
    monkeypatch.setattr(templates, "SECONDS", 0.5)
    monkeypatch.setattr(templates, "MEMORY", 2**30)
    before = resource.getrlimit(resource.RLIMIT_AS)
    file = tmp_path / "t.jinja"
    file.write_text(template)
    made = Templates(tiny_tokenizer(), DataSettings(chat_template=str(file)))
    start = time.monotonic()
    with pytest.raises(DataError) as found:
        made.render(MESSAGES, None, "row 3")
    assert text in str(found.value)
    assert "\n" not in str(found.value)
    assert time.monotonic() - start < 5.0
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def endless(seconds):
    with time_limit(seconds):
        while True:
            pass


def test_the_limit_leaves_nothing_behind():
    with pytest.raises(OutOfTime):
        endless(0.05)
    for _ in range(200):
        with time_limit(0.002):
            pass
    time.sleep(0.05)  # an error that came late would be raised here
    with time_limit(5.0):
        assert sum(range(10)) == 45


def test_memory_is_limited_beyond_what_the_process_has():
    held = bytearray(2**28)
    with memory_limit(2**29):
        assert len(bytearray(2**28)) == len(held)
        with pytest.raises(MemoryError):
            bytearray(2**30)
    assert len(bytearray(2**30)) == 2**30


def test_a_template_that_was_tried_is_not_limited_again(monkeypatch, tmp_path):
    """Other threads may allocate for a model while an episode is rendered."""
    file = tmp_path / "t.jinja"
    file.write_text("{{ messages[0].content }}")
    made = Templates(tiny_tokenizer(), DataSettings(chat_template=str(file)))
    made.render(MESSAGES, None, "row 1")
    monkeypatch.setattr(templates, "memory_limit", lambda more: 1 / 0)
    assert made.render(MESSAGES, None, "row 2") == "a"
