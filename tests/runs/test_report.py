"""posttrain report: one page, complete in itself; what it shows is what the run wrote."""

import json
import random
import re
import sys

import pytest
from posttrain.cli.main import main
from posttrain.errors import DependencyError
from posttrain.runs.reading import read_run
from posttrain.runs.report import page
from posttrain.runs.report.completions import chosen_completions
from posttrain.runs.report.data import report_data
from posttrain.runs.report.differences import differences, flat_configuration
from posttrain.runs.report.series import charts, curves


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL).group(1))


def test_the_page_of_a_real_run_holds_every_step_and_completion(grpo_run, tmp_path, capsys):
    file = tmp_path / "page.html"
    assert main(["report", str(grpo_run), "--output", str(file), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    text = file.read_text()
    assert facts == {"report": str(file), "bytes": file.stat().st_size, "runs": [str(grpo_run)]}
    assert facts["bytes"] < 2_000_000
    (run,) = data_of(text)["runs"]
    written = read_run(grpo_run)
    for name in ("loss", "reward", "reward_count_of_a", "entropy", "completion_length", "tokens_per_second"):
        values = [line[name] for line in written.metrics]
        assert run["curves"][name] == [[1, 2, 3, 4, 5, 6], pytest.approx(values, rel=1e-4)]
    assert run["curves"]["eval_reward"][0] == [0, 6]
    shown = [row[1] for prompt in run["prompts"] for row in prompt["completions"]]
    assert sorted(shown) == sorted(sample["completion"] for sample in written.samples)
    assert run["state"] == "finished"


def test_the_page_asks_for_nothing_from_elsewhere(grpo_run):
    text = page.render(report_data([read_run(grpo_run)]), "again")
    for library in page.library():
        text = text.replace(library, "")
    assert "default-src 'none'" in text
    assert not re.search(r"""(src|href)=["'](?!data:)|url\(|@import|fetch\(|XMLHttpRequest|https?://""", text)


def test_text_of_others_is_shown_and_never_run(write_run):
    evil = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'
    directory = write_run(name="a&b")
    directory.sample({"step": 1, "prompt": evil, "completion": evil, "reward": 1.0, "rewards": {evil: 1.0}})
    directory.alert(evil, "warning", evil, {"step": 1, evil: evil}, evil)
    text = page.render(report_data([read_run(directory.path)]), evil)
    for library in page.library():
        text = text.replace(library, "")
    assert text.count("<script") == text.count("</script>") == 4  # data, two libraries, code
    assert "<img" not in text
    assert data_of(text)["runs"][0]["prompts"][0]["prompt"] == evil


def test_alerts_stand_on_the_page_with_step_evidence_and_suggestion(write_run):
    directory = write_run()
    directory.alert("dead-reward", "warning", "all rewards are 0", {"step": 2, "reward": 0.0}, "--temperature 1.2")
    data = report_data([read_run(directory.path)])
    (alert,) = data["runs"][0]["alerts"]
    assert (alert["step"], alert["evidence"]) == (2, "reward 0.0")
    text = page.render(data, "")
    for part in ("dead-reward", "all rewards are 0", "--temperature 1.2"):
        assert part in text


def test_a_run_that_failed_says_how_it_ended(write_run):
    (run,) = report_data([read_run(write_run(end="failed").path)])["runs"]
    assert ["how it ended", "failed it is"] in run["facts"]


def test_several_runs_are_compared_and_their_options_told_apart(write_run, tmp_path, monkeypatch, capsys):
    write_run("a", settings={"learning_rate": 1e-3, "seed": 1})
    write_run("b", settings={"learning_rate": 1e-5, "seed": 1}, end="failed")
    monkeypatch.chdir(tmp_path)
    assert main(["report", "a", "b"]) == 0
    assert capsys.readouterr().out.startswith("report.html (1.")
    data = data_of((tmp_path / "report.html").read_text())
    assert data["differences"] == [["learning_rate", "0.001", "1e-05"]]
    assert [run["name"] for run in data["runs"]] == ["a", "b"]
    assert all(len(chart["metrics"]) == 1 for chart in data["charts"])


def test_the_page_lies_in_the_run_unless_a_place_is_named(write_run):
    directory = write_run()
    assert main(["report", str(directory.path)]) == 0
    assert (directory.path / "report.html").is_file()


def test_a_long_run_keeps_its_spikes_and_its_ends():
    dice = random.Random(0)
    lines = [{"step": step, "loss": dice.random()} for step in range(1, 20_001)]
    lines[7_654]["loss"] = 99.0
    lines[12_345]["loss"] = -99.0
    steps, values = curves(lines, points=2000)["loss"]
    assert len(steps) <= 1010
    assert (steps[0], steps[-1], max(values), min(values)) == (1, 20_000, 99.0, -99.0)
    assert steps == sorted(set(steps))


def test_a_page_of_ten_long_runs_is_below_two_megabytes(write_run):
    names = [f"metric_{n}" for n in range(60)]
    runs = []
    for k in range(10):
        run = read_run(write_run(f"run-{k}").path)
        dice = random.Random(k)
        run.metrics = [{"step": s, **{name: dice.random() for name in names}} for s in range(1, 400)]
        run.samples = [
            {"step": s, "prompt": f"{s % 50}" * 500, "completion": "ü" * 3000, "reward": 1.0} for s in range(300)
        ]
        runs.append(run)
    assert len(page.render(report_data(runs), "").encode()) < 2_000_000


def test_numbers_that_were_not_finite_are_left_out():
    assert curves([{"step": 1, "loss": 1.0}, {"step": 2, "loss": None}, {"step": 3, "loss": float("nan")}]) == {
        "loss": [[1], [1.0]]
    }


def test_held_out_and_paired_metrics_share_a_chart_of_one_run():
    names = ["loss", "eval_loss", "logp_chosen", "logp_rejected", "reward", "reward_a", "reward_b", "reward_std"]
    found = {chart["title"]: chart["metrics"] for chart in charts(names, {"reward_a": "Words."}, several=False)}
    assert found == {
        "Loss": ["loss", "eval_loss"],
        "Reward": ["reward"],
        "Parts of the reward": ["reward_a", "reward_b"],
        "Reward std": ["reward_std"],
        "Logp": ["logp_chosen", "logp_rejected"],
    }


def test_a_prompt_that_recurs_comes_first_with_its_first_and_last_answer():
    samples = [{"step": s, "prompt": "often", "completion": f"answer {s}", "reward": s} for s in range(100)]
    samples.insert(50, {"step": 50, "prompt": "once", "completion": "x", "reward": 0.0})
    first, second = chosen_completions(samples)
    assert (first["prompt"], second["prompt"]) == ("often", "once")
    steps = [row[0] for row in first["completions"]]
    assert (len(steps), steps[0], steps[-1]) == (40, 0, 99)


def test_where_a_run_is_written_is_no_difference():
    one = {"method": "sft", "settings": {"output": "a", "seed": 1}, "options": {"beta": 1.0}}
    other = {"method": "dpo", "settings": {"output": "b", "seed": 1}, "options": {}}
    assert differences([flat_configuration(one), flat_configuration(other)]) == [
        ["method", "sft", "dpo"],
        ["beta", 1.0, None],
    ]


def test_a_missing_library_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "bokeh.util.paths", None)
    page.library.cache_clear()
    with pytest.raises(DependencyError) as caught:
        page.library()
    assert str(caught.value) == ("The report needs the package bokeh. Install it with: pip install 'posttrain[report]'")


def test_episodes_are_shown_turn_by_turn():
    from posttrain.runs.conversation import said_in
    from posttrain.runs.report.completions import chosen_completions
    from posttrain.runs.terminal.words import sample_words

    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 3}}}
    talk = [
        {"role": "assistant", "content": "", "tool_calls": [call, {"error": "the tool call 'x' cannot be read"}]},
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": "It is 7."},
    ]
    text = "assistant: add({\"a\": 3}) [the tool call 'x' cannot be read]\ntool: 7\nassistant: It is 7."
    sample = {"step": 1, "prompt": "3?", "completion": "It is 7.", "messages": talk, "reward": 1.0}
    assert said_in(sample) == text
    assert chosen_completions([sample])[0]["completions"][0][1] == text
    assert sample_words(sample).endswith(text)
    assert said_in({"completion": "plain"}) == "plain"
