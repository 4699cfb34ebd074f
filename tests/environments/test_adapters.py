"""Environments and tools of other makers, with their real packages: Gymnasium, MCP servers, OpenEnv's form."""

import http.server
import json
import sys
import threading

import pytest
from posttrain.assembly.environment import find_task
from posttrain.environments.environment import ToolUse
from posttrain.environments.http import HttpEnvironment
from posttrain.errors import RunFailed, SettingsError
from posttrain.settings import EpisodeSettings
from posttrain_testkit.environments import check_environment


def says(text):
    return {"role": "assistant", "content": text}


def test_a_game_of_gymnasium_is_played_in_words():
    pytest.importorskip("gymnasium", reason="needs the extra posttrain[gymnasium]")
    task = find_task(EpisodeSettings(environment="gym:FrozenLake-v1"))
    rows = task.rows()
    assert rows[0]["prompt"][0]["content"] == "You play FrozenLake-v1. Answer with an action, a number from 0 to 3."
    game = task.make()
    shown = game.reset(rows[0], 0)
    assert "S" in shown
    assert "\x1b" not in shown
    assert game.step(says("north")).messages == "That is no action. Expected a number from 0 to 3."
    assert game.step(says("I go 9")).messages.startswith("That is no action")
    for _ in range(200):
        found = game.step(says("2"))
        if found.done:
            break
    assert found.done
    assert check_environment(task.make, rows)["rows"] == 500
    with pytest.raises(SettingsError, match=r"has actions of the kind Box, which a model cannot say"):
        find_task(EpisodeSettings(environment="gym:MountainCarContinuous-v0"))
    with pytest.raises(SettingsError, match="gym:Nothing-v9"):
        find_task(EpisodeSettings(environment="gym:Nothing-v9"))


SERVER = """
from mcp.server.mcpserver import MCPServer

server = MCPServer("sums")


@server.tool()
def add(a: int, b: int) -> int:
    "Add two numbers."
    return a + b


@server.tool()
def fail() -> str:
    "Fail."
    raise ValueError("no luck")


server.run()
"""


def test_tools_of_an_mcp_server_are_called_like_functions(tmp_path):
    pytest.importorskip("mcp", reason="needs the extra posttrain[mcp]")
    (tmp_path / "server.py").write_text(SERVER)
    task = find_task(EpisodeSettings(tools=[f"mcp:{sys.executable} {tmp_path / 'server.py'}"]))
    assert isinstance(task.make(), ToolUse)
    assert [one["function"]["name"] for one in task.tools] == ["add", "fail"]
    assert task.tools[0]["function"]["parameters"]["properties"]["a"]["type"] == "integer"

    def said(name, **arguments):
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        (answer,) = task.make().step(says("") | {"tool_calls": [call]}).messages
        return answer["content"]

    assert said("add", a=3, b=4) == "7"
    assert said("fail").startswith("Error: ")
    assert said("add", a="x", b=4).startswith("Error: ")
    with pytest.raises(SettingsError, match="the server does not start"):
        find_task(EpisodeSettings(tools=[f"mcp:{sys.executable} {tmp_path / 'none.py'}"]))


class Server(http.server.BaseHTTPRequestHandler):
    """OpenEnv's form: an observation, a reward, whether it is done, and who the episode is."""

    games: dict = {}  # noqa: RUF012

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/reset":
            name = f"e{len(self.games)}"
            self.games[name] = 0
            self.answer({"observation": {"text": f"Begin with {body['row']['word']}."}, "episode_id": name})
        elif "episode_id" not in body or body["action"]["message"] == "break":
            self.send_error(500)
        else:
            self.games[body["episode_id"]] += 1
            turns = self.games[body["episode_id"]]
            self.answer({"observation": {"turn": turns}, "reward": turns / 2, "done": turns == 2})

    def answer(self, value):
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def address():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_an_environment_behind_http(address):
    first, second = HttpEnvironment(address), HttpEnvironment(address)
    assert first.reset({"word": "up", "tools": []}, 5) == "Begin with up."
    second.reset({"word": "down"}, 5)
    assert first.step(says("a")).messages == '{"turn": 1}'
    assert second.step(says("a")).messages == '{"turn": 1}'
    end = first.step(says("a"))
    assert (end.reward, end.done) == (1.0, True)
    assert first.tools() == []
    with pytest.raises(RunFailed, match="does not answer /step: HTTP Error 500"):
        second.step(says("break"))
    task = find_task(EpisodeSettings(environment=address))
    assert (task.scores, task.tools, task.rows()) == (True, [], None)
