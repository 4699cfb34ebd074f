"""A sandbox by address: a server that speaks SandboxFusion's protocol, and reward workers that run programs."""

import contextlib
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from posttrain.errors import DataError, RunFailed
from posttrain.rewards.code import code
from posttrain.rewards.reward import Reward
from posttrain.rewards.worker import RemoteReward, ScoreServer
from posttrain.sandbox.limits import Limits
from posttrain.sandbox.program_tests import ProgramTests
from posttrain.sandbox.remote import RemoteSandbox, plain_calls

LIMITS = Limits(seconds=5.0)


class Fusion(BaseHTTPRequestHandler):
    """``POST /run_code`` as SandboxFusion answers it; the programs of these tests are harmless and run as they are."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)
        answer = self.server.answers.pop(0) if self.server.answers else self.run(asked)
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def run(self, asked):
        assert self.path == "/run_code"
        assert asked["language"] == "python"
        words = [sys.executable, "-c", asked["code"]]
        try:
            ran = subprocess.run(
                words, input=asked["stdin"], capture_output=True, text=True, timeout=asked["run_timeout"]
            )
        except subprocess.TimeoutExpired:
            return {"status": "Failed", "run_result": {"status": "TimeLimitExceeded", "return_code": None}}
        result = {"status": "Finished", "return_code": ran.returncode, "stdout": ran.stdout, "stderr": ran.stderr}
        return {"status": "Success" if ran.returncode == 0 else "Failed", "message": "", "run_result": result}

    def log_message(self, *_):
        pass


@pytest.fixture
def fusion():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Fusion)
    server.asked, server.answers = [], []
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def at(server):
    return f"http://127.0.0.1:{server.server_port}"


def test_pairs_and_plain_assertions_are_graded_by_a_server(fusion):
    pairs = [{"input": "2", "output": "4"}, {"input": "3", "output": "7"}]
    program = "```python\nx = int(input())\nprint(x * 2)\n```"
    scores, columns = code([program], [pairs], sandbox=at(fusion))
    assert scores == [0.5]
    assert columns["feedback"] == ["input '3': expected '7', the program wrote '6\\n'"]
    asserts = [
        "assert f(2) == 4",
        "assert f([1, 'a']) == [1, 'a', 1, 'a']",
        "assert f(2.5) == 6",
        "assert f(None) == 0",
    ]
    scores, columns = code(["def f(x):\n    print('noise')\n    return x * 2"], [asserts], sandbox=at(fusion))
    assert scores == [0.5]
    assert columns["feedback"] == ["assert f(2.5) == 6\n  f(2.5) returned 5.0"]
    sent = json.dumps(fusion.asked)
    assert "== 4" not in sent  # what is expected stays here
    assert "== 6" not in sent


@pytest.mark.parametrize(
    "program",
    [
        "import os\nprint('4\\n6')\nos._exit(0)",
        "print(4)\nprint(6)\nraise SystemExit(0)",
        "import atexit\natexit.register(print, 'True\\nTrue')\ndef f(x): return 0",
        "class Yes(int):\n    __eq__ = lambda *a: True\n    __repr__ = lambda s: 'print()'\ndef f(x): return Yes()",
        "def f(x): return '[' * 100000",
        "def f(x): raise SystemExit",
        "def f(x:",
    ],
)
def test_a_server_s_output_is_data(program, fusion):
    scores, columns = code([program], [["assert f(2) == 5", "assert f(3) == 7"]], sandbox=at(fusion))
    assert scores == [0.0]
    assert columns["feedback"][0]


def test_limits_hold_for_servers_too(fusion):
    slow = RemoteSandbox(at(fusion)).run("while True: pass", "", Limits(seconds=0.5))
    assert slow.end == "time"
    loud = RemoteSandbox(at(fusion)).run("print('x' * 1000)", "", Limits(output_bytes=100))
    assert (loud.end, len(loud.output)) == ("output", 100)


@pytest.mark.parametrize("answer", [[], {}, {"run_result": 3}, {"status": "SandboxError", "run_result": {}}])
def test_an_answer_of_another_form_ends_the_run_and_says_so(answer, fusion):
    fusion.answers.append(answer)
    with pytest.raises(RunFailed, match="expected 'run_result' as SandboxFusion has") as found:
        RemoteSandbox(at(fusion)).run("1", "", LIMITS)
    assert at(fusion) in str(found.value)


@pytest.mark.parametrize(
    "tests",
    [
        "assert f(1) < 2",
        "assert f(g(1)) == 2",
        "assert f(1) == g(1)",
        "x = 1\nassert f(1) == 1",
        "def test_f():\n    assert f(1)",
    ],
)
def test_tests_that_cannot_be_kept_apart_there_are_refused(tests):
    with pytest.raises(DataError, match="cannot be kept apart from the program on a server that runs one process"):
        plain_calls(ProgramTests.of(tests))


def test_a_reward_worker_is_a_sandbox_with_every_kind_of_tests(sandbox):
    with contextlib.closing(ScoreServer([Reward("code", 1.0, code, False)], "127.0.0.1", 0)) as server:
        server.close = server.server_close
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        worker = RemoteReward(f"http://127.0.0.1:{server.server_port}")
        tests = ["def test_f():\n    assert f(1) == 2\ndef test_g():\n    assert f(1) == 3"]
        scores, columns = worker(["p"], ["def f(x):\n    return x + 1"], tests=tests)
        server.shutdown()
    assert scores == [0.5]
    assert "assert 2 == 3" in columns["feedback"][0]
