"""posttrain mcp, through the official client: an agent finds out about runs by tools alone, and changes nothing."""

import asyncio
import json
import os
import socket
import sys
from pathlib import Path

import pytest
from posttrain.cli.main import main
from posttrain.runs.owner import started

mcp = pytest.importorskip("mcp")
ROOT = Path(__file__).resolve().parent.parent.parent
READING = ["list_runs", "metrics", "alerts", "samples", "compare", "verdict", "explain"]


def answer(result):
    assert not result.is_error, result.content
    found = result.structured_content
    return found["result"] if set(found) == {"result"} else found


def talk(folder, conversation, *flags):
    """Start the server as an agent's host does, and hold a conversation with it."""

    async def hold():
        words = ["-m", "posttrain", "mcp", str(folder), *flags]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "core")}
        command = mcp.StdioServerParameters(command=sys.executable, args=words, env=environment)
        async with mcp.Client(command, read_timeout_seconds=60) as client:
            return await conversation(client)

    return asyncio.run(hold())


def test_the_failing_one_of_five_runs_is_found_and_says_why(train_grpo, tmp_path):
    def broken(prompts, completions):
        broken.calls += 1
        if broken.calls == 2:
            raise ZeroDivisionError("the answer column is empty")
        return [0.0] * len(completions)

    broken.calls = 0
    for name in ("first", "second", "third", "fourth", "fifth"):
        keywords = {"steps": 2, "eval_data": None}
        if name == "third":
            with pytest.raises(Exception, match="answer column"):
                train_grpo(tmp_path / name, reward=[broken], learning_rate=0.5, **keywords)
        else:
            train_grpo(tmp_path / name, **keywords)

    async def conversation(client):
        tools = (await client.list_tools()).tools
        runs = answer(await client.call_tool("list_runs", {}))
        (failing,) = [one["run"] for one in runs if one["state"] not in ("finished", "running")]
        verdict = answer(await client.call_tool("verdict", {"run": failing}))
        samples = answer(await client.call_tool("samples", {"run": failing, "last": 2}))
        compared = answer(await client.call_tool("compare", {"runs": ["first", failing]}))
        metrics = answer(await client.call_tool("metrics", {"run": failing, "names": ["reward"]}))
        return tools, runs, failing, verdict, samples, compared, metrics

    tools, runs, failing, verdict, samples, compared, metrics = talk(tmp_path, conversation)
    assert [tool.name for tool in tools] == READING
    assert all(tool.annotations.read_only_hint and tool.description for tool in tools)
    assert (len(runs), failing) == (5, "third")
    assert verdict["state"] == "failed"
    assert "the answer column is empty" in json.dumps(verdict)
    assert [sample["reward"] for sample in samples] == [0.0, 0.0]
    assert compared["differences"]["learning_rate"] == {"first": "0.01", "third": "0.5"}
    assert (metrics["metrics"]["reward"]["values"], metrics["metrics"]["reward"]["better"]) == ([0.0], "higher")


def in_process(folder, conversation, allow_control=False):
    from posttrain.cli.mcp import make_server

    async def hold():
        async with mcp.Client(make_server([folder], allow_control)) as client:
            return await conversation(client)

    return asyncio.run(hold())


def test_alerts_have_their_evidence(write_run, tmp_path):
    directory = write_run("one")
    directory.alert("dead-reward", "warning", "all 0", {"step": 2, "reward": 0.0}, "--temperature 1.2")

    async def conversation(client):
        return answer(await client.call_tool("alerts", {"run": "one"}))

    (alert,) = in_process(tmp_path, conversation)
    assert (alert["code"], alert["evidence"], alert["suggestion"]) == (
        "dead-reward",
        {"step": 2, "reward": 0.0},
        "--temperature 1.2",
    )


@pytest.mark.parametrize("tool", ["stop", "checkpoint"])
def test_control_is_only_there_where_it_is_allowed(write_run, tmp_path, tool):
    directory = write_run("one", end="")
    record = {"host": socket.gethostname(), "process": os.getpid(), "started": started(os.getpid()), "job": None}
    (directory.path / ".owner.json").write_text(json.dumps(record))

    async def conversation(client):
        return await client.call_tool(tool, {"run": "one"})

    before = sorted(path.name for path in directory.path.iterdir())
    assert in_process(tmp_path, conversation).is_error
    assert sorted(path.name for path in directory.path.iterdir()) == before
    assert "after its step" in answer(in_process(tmp_path, conversation, allow_control=True))
    assert (directory.path / f".ask-{tool}").exists()


@pytest.mark.parametrize("name", ["nothing", "../other/run", "/etc"])
def test_only_runs_of_the_folder_are_read(write_run, tmp_path, name):
    write_run("inside/one")
    write_run("other/run")

    async def conversation(client):
        return await client.call_tool("verdict", {"run": name})

    result = in_process(tmp_path / "inside", conversation)
    assert result.is_error
    assert result.content[0].text.endswith(f"There is no run '{name}'. Runs: one.")


def test_an_unknown_metric_names_those_that_there_are(write_run, tmp_path):
    write_run("one")

    async def conversation(client):
        return await client.call_tool("metrics", {"run": "one", "names": ["los"]})

    result = in_process(tmp_path, conversation)
    assert "Run 'one' has no metric los. It has: loss, " in result.content[0].text


def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["mcp"]) == 2
    assert capsys.readouterr().err == (
        "There is no folder 'runs'. Name the one that holds the runs: posttrain mcp FOLDER\n"
    )
    monkeypatch.setitem(sys.modules, "mcp.server.mcpserver", None)
    assert main(["mcp", "."]) == 2
    assert capsys.readouterr().err == (
        "posttrain mcp needs the package mcp, 2 or newer. Install it with: pip install 'posttrain[mcp]'\n"
    )
