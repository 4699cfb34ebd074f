"""What is shown while a run goes on: in a terminal, in a file, in a notebook, as JSON, or nothing."""

import io
import json
import re

import pytest
from posttrain.runs.metrics import describe_metric, format_value, key_metrics, parse_notes
from posttrain.runs.progress import ProgressLine
from posttrain.runs.terminal.words import shown_metrics

ALERT = {"kind": "alert", "severity": "warning", "code": "dead-reward", "message": "all 0", "suggestion": "--x 2"}
SAMPLE = {"step": 3, "reward": 0.5, "completion": "hello [bold]world"}
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def line(step, **metrics):
    return {"step": step, "loss": 1 / step, "tokens_per_second": 33.0, "seconds": 0.1} | metrics


def shown(kind, stream, steps=12, **keywords):
    progress = ProgressLine(kind, steps, keywords.pop("every", 1), stream, **keywords)
    progress.say("before")
    for step in range(1, steps + 1):
        progress.step(line(step, reward=0.1 * step))
        if step == 5:
            progress.posttrain_alert(event=ALERT)
    progress.close()
    return stream.getvalue()


def test_a_terminal_shows_a_bar_that_ends_full_and_keeps_alerts():
    text = shown("bar", Terminal())
    plain = ESCAPES.sub("", text)
    assert plain.startswith("before\n")
    assert "! warning dead-reward: all 0.  Try: --x 2\n" in plain
    last = plain.rstrip("\n").split("\n")[-2:]
    assert "12/12 0:00 left 33 tokens/s" in last[0]
    assert last[1].split() == ["loss↓", "0.0833", "reward↑", "1.200"]
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor comes back


def test_a_terminal_is_given_back_when_a_run_ends_early():
    stream = Terminal()
    progress = ProgressLine("bar", 10, 1, stream)
    progress.step(line(1))
    progress.close()
    assert stream.getvalue().endswith("\x1b[?25h")


def test_a_bar_is_drawn_only_now_and_then():
    stream = Terminal()
    progress = ProgressLine("bar", 1000, 1, stream)
    for step in range(1, 1000):
        progress.step(line(step))
    assert len(re.findall(r"\d+/1000", stream.getvalue())) < 30
    progress.close()


def test_a_file_gets_a_line_every_so_many_steps_and_no_escapes():
    text = shown("bar", io.StringIO(), every=5)
    assert "\x1b" not in text
    steps = re.findall(r"\] (\d+)/12", text)
    assert steps == ["5", "10", "12"]
    assert "[########............] 5/12  loss↓ 0.2000  reward↑ 0.500  33 tokens/s" in text
    assert "! warning dead-reward: all 0.  Try: --x 2\n" in text


def test_plain_lines_are_written_to_a_terminal_too():
    assert "\x1b" not in shown("plain", Terminal())


def test_quiet_shows_nothing():
    assert shown("quiet", Terminal()) == ""


def test_json_has_a_line_a_step_and_an_alert_between(capsys):
    shown("json", io.StringIO(), steps=6)
    lines = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert [one.get("step", one.get("code")) for one in lines] == [1, 2, 3, 4, 5, "dead-reward", 6]


@pytest.mark.parametrize("kind", ["bar", "plain"])
def test_the_last_completion_is_shown_where_it_is_asked_for(kind):
    text = shown(kind, Terminal(), sample=lambda: SAMPLE)
    assert "step 3, reward 0.500: hello [bold]world" in ESCAPES.sub("", text)


def test_a_run_shows_its_newest_completion(train_grpo, tmp_path, capsys):
    train_grpo(tmp_path / "run", steps=2, progress="json", show_completion=True, eval_data=None)
    lines = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    written = [json.loads(text) for text in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [line["sample"] for line in lines] == [written[7], written[15]]


def test_a_notebook_gets_one_output_that_renews_itself():
    interactive = pytest.importorskip("IPython.core.interactiveshell")
    capture = pytest.importorskip("IPython.utils.capture")
    interactive.InteractiveShell.instance()
    try:
        with capture.capture_output() as caught:
            progress = ProgressLine("notebook", 3, 1, sample=lambda: {"completion": "<b>x", "step": 1, "reward": 1.0})
            for step in range(1, 4):
                progress.step(line(step))
                progress.form._drawn = 0.0
            progress.posttrain_alert(event=ALERT | {"message": "a < b"})
    finally:
        interactive.InteractiveShell.clear_instance()
    pages = [output.data["text/html"] for output in caught.outputs]
    assert 'value="1"' in pages[0]
    assert 'value="3"' in pages[-1]
    assert "&lt;b&gt;x" in pages[-1]
    assert "! warning dead-reward: a &lt; b.  Try: --x 2" in pages[-1]
    assert [output.update for output in caught.outputs] == [False, True, True, True]


def test_the_direction_that_is_good_is_known_and_what_goes_there_is_told():
    history = [line(step, reward=float(step), accuracy=-float(step)) for step in range(1, 20)]
    found = {one.name: one for one in shown_metrics(line(20, reward=20.0, accuracy=-20.0), history)}
    assert (found["reward"].arrow, found["reward"].going) == ("↑", "good")
    assert (found["accuracy"].arrow, found["accuracy"].going) == ("↑", "bad")
    assert (found["loss"].arrow, found["loss"].going) == ("↓", "good")


def test_the_loss_of_a_method_that_samples_has_no_good_direction():
    assert describe_metric("loss", online=True).better == ""
    assert shown_metrics(line(1, completion_length=3.0), [])[0].arrow == ""


def test_a_methods_own_metrics_come_after_the_known_ones():
    assert key_metrics({"step": 1, "loss": 1.0, "explained_variance": 0.5, "kl": 0.1, "prompts_issued": 4}) == [
        "kl",
        "explained_variance",
    ]


@pytest.mark.parametrize("name", ["data_seconds", "advantage_seconds", "generator_idle_seconds", "eval_seconds"])
def test_seconds_of_parts_of_a_step_are_about_the_machine(name):
    assert describe_metric(name).topic == "throughput"
    assert key_metrics({"loss": 1.0, name: 0.1}) == []


def test_what_a_method_says_of_its_metrics_is_read_from_its_docstring():
    text = "Title.\n\nMetrics:\n- kl: a. Over\n  two lines.\n- low, high: both.\n\nOther: x\n"
    assert parse_notes(text) == {"kl": "a. Over two lines.", "low": "both.", "high": "both."}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.500"), (0, "0"), (12345.6, "12.3k"), (2.5e6, "2.50M"), (123.4, "123"), (1e-6, "1.0e-06"), (None, "-")],
)
def test_numbers_are_short(value, text):
    assert format_value(value) == text
