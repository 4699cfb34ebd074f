"""Odd, hostile and slow clients against the real servers: a status and one line each, and the next client is served."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
import torch
from posttrain.cli.main import main
from posttrain.errors import RewardError
from posttrain.generation.vllm.weight_host import WeightHost
from posttrain.rewards import load_rewards, score
from posttrain.rewards.worker import ScoreServer
from posttrain.servers.listener import TOKEN, same


def letters(completions):
    return [float(len(completion)) for completion in completions]


def started(token=None):
    server = ScoreServer(load_rewards([letters]), "127.0.0.1", 0, token)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)
    server = started()
    yield server
    server.shutdown()
    server.server_close()


def ask(port, data, limit=20.0):
    """Status and body of the answer to raw bytes; (0, b"") where the server only lets go."""
    with socket.create_connection(("127.0.0.1", port), timeout=limit) as client:
        client.sendall(data)
        found = b""
        try:
            while piece := client.recv(65536):
                found += piece
        except ConnectionResetError:
            pass
    head, _, body = found.partition(b"\r\n\r\n")
    return (int(head.split()[1]), body) if head else (0, b"")


GOOD = {"interface": 1, "prompts": ["p"], "completions": ["abc"], "columns": {}}


def post(body, path="/v1/score", length=None, **headers):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {"Host": "127.0.0.1", "Content-Type": "application/json", "Content-Length": str(length or len(body))}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


PROBES = {
    "good": (post(GOOD), 200, '{"scores": [3.0], "columns": {}}'),
    "health": (b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n", 200, '"role": "rewards"'),
    "list": (post([1]), 400, "the question is list, expected an object"),
    "number": (post(b"7"), 400, "the question is int, expected an object"),
    "null": (post(b"null"), 400, "the question is NoneType, expected an object"),
    "string": (post(b'"a"'), 400, "the question is str, expected an object"),
    "no JSON": (post(b"{"), 400, "the question is no JSON: "),
    "no UTF-8": (post(b"\xff\xfe{"), 400, "the question is no JSON: "),
    "nested": (post(b"[" * 200_000), 400, "the question is no JSON: "),
    "digits": (post(b'{"interface": ' + b"1" * 5001 + b"}"), 400, "the question is no JSON: "),
    "empty": (post(b"", length="0"), 400, "the question is no JSON: "),
    "interface": (post(GOOD | {"interface": 4}), 422, "speaks the interfaces 1 to 3, the question was asked in 4."),
    "no pictures": (post(GOOD | {"interface": 2}), 422, "'pictures' are data URLs, such as data:image/png;base64,"),
    "long interface": (post(GOOD | {"interface": 10**400}), 422, "a number of about 401 digits"),
    "no completions": (post({"interface": 1}), 400, "a question has the lists 'prompts' and 'completions'"),
    "completions no texts": (post(GOOD | {"completions": [3]}), 400, "'completions' are texts"),
    "unequal": (post(GOOD | {"prompts": ["p", "q"]}), 400, "prompts and every column are lists of 1"),
    "column no list": (post(GOOD | {"columns": {"a": 1}}), 400, "prompts and every column are lists of 1"),
    "negative length": (post(GOOD, length="-1"), 400, "Content-Length is '-1', expected a whole number"),
    "length in words": (post(GOOD, length="ten"), 400, "Content-Length is 'ten', expected a whole number"),
    "hexadecimal": (post(GOOD, length="0x10"), 400, "Content-Length is '0x10'"),
    "signed": (post(GOOD, length="+5"), 400, "Content-Length is '+5'"),
    "other digits": (post(GOOD, length="\xb2"), 400, "Content-Length is "),
    "too long": (post(GOOD, length="400000000"), 413, "a question has at most 134217728 bytes"),
    "absurd": (post(GOOD, length="9" * 5000), 413, "a question has at most 134217728 bytes"),
    "no length": (post(GOOD, Content_Length=None), 411, "a question says its Content-Length"),
    "chunked": (post(GOOD, Transfer_Encoding="chunked"), 411, "a question says its Content-Length"),
    "two lengths": (post(GOOD, content_length="3"), 400, "Content-Length is "),
    "unknown path": (post(GOOD, path="/x", length="400000000"), 404, "there is no '/x'"),
    "long path": (post(GOOD, path="/" + "x" * 2000), 404, "there is no '/xxx"),
    "unknown GET": (b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n", 404, "there is no '/x'"),
    "text": (post(GOOD, Content_Type="text/plain"), 415, "the Content-Type application/json"),
    "no type": (post(GOOD, Content_Type=None), 415, "the Content-Type application/json"),
    "foreign page": (post(GOOD, Origin="http://evil.example"), 403, "web pages may not ask here"),
    "browser": (post(GOOD, Sec_Fetch_Site="cross-site"), 403, "web pages may not ask here"),
    "foreign name": (post(GOOD, Host="evil.example:8100"), 403, "for its own machine"),
    "IPv6 name": (post(GOOD, Host="[::1]:8100"), 200, "scores"),
    "delete": (b"DELETE /v1/score HTTP/1.1\r\nHost: localhost\r\n\r\n", 501, "Unsupported method"),
    "garbage": (b"\x00\x01\x02\r\n\r\n", 400, "Bad request syntax"),
    "version": (b"GET / HTTP/9.9\r\n\r\n", 505, "Invalid HTTP version"),
    "long line": (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 414, "URI Too Long"),
    "many headers": (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", 431, "Too many headers"),
    "nothing": (b"\r\n\r\n", 0, ""),
}


@pytest.mark.parametrize("name", PROBES)
def test_probe(server, name, capsys):
    data, status, text = PROBES[name]
    found, body = ask(server.server_port, data)
    assert found == status, body
    assert text in body.decode()
    if status >= 400:
        assert len(json.loads(body)["error"]["message"].splitlines()) == 1
        assert len(body) < 400
    assert "Traceback" not in capsys.readouterr().err


def test_a_token_is_asked_for_where_there_is_one(monkeypatch):
    server = started("word")
    try:
        port = server.server_port
        for given in (None, "Bearer wrong", "Bearer w\xf6rd", "Bearer "):
            status, body = ask(port, post(GOOD, Authorization=given))
            assert (status, "both sides need POSTTRAIN_TOKEN" in body.decode()) == (401, True)
        assert ask(port, post(GOOD, Authorization="Bearer word"))[0] == 200
        assert ask(port, b"GET /health HTTP/1.1\r\n\r\n")[0] == 200
        monkeypatch.setenv(TOKEN, "word")
        remote = load_rewards([f"http://127.0.0.1:{port}"])
        assert score(remote, ["p"], ["abc"], {})[0].tolist() == [3.0]
        monkeypatch.setenv(TOKEN, "other")
        with pytest.raises(RewardError, match="401: the token is missing or wrong"):
            score(load_rewards([f"http://127.0.0.1:{port}"]), ["p"], ["abc"], {})
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("sent", [b"", b"POST /v1/score HT", post(GOOD)[:-5]], ids=["nothing", "half a line", "half"])
def test_slow_clients_are_let_go_however_often_they_send_a_byte(server, sent):
    server.patience = 0.3
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as client:
        client.sendall(sent)
        drips = threading.Event()

        def drip():
            while not drips.wait(0.05):
                try:
                    client.send(b"x")
                except OSError:
                    return

        if sent.startswith(b"POST /v1/score HT") and len(sent) < 20:
            threading.Thread(target=drip, daemon=True).start()
        try:
            while client.recv(1000):
                pass
        except OSError:
            pass
        drips.set()
    assert time.monotonic() - begun < 15
    server.patience = 20.0
    assert ask(server.server_port, post(GOOD))[0] == 200


def test_only_so_many_clients_at_a_time(server):
    server._places = threading.BoundedSemaphore(3)
    idle = [socket.create_connection(("127.0.0.1", server.server_port), timeout=20) for _ in range(3)]
    deadline = time.monotonic() + 20
    while server._places._value and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    before = threading.active_count()
    for _ in range(20):
        assert ask(server.server_port, b"")[0] == 503
    assert threading.active_count() <= before
    for one in idle:
        one.close()
    while server._places._value < 3 and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert ask(server.server_port, post(GOOD))[0] == 200


def test_the_weight_host_shows_nothing_to_who_does_not_know_its_secret(capsys):
    host = WeightHost("http://127.0.0.1:9")
    try:
        url = host.offer("a", {"w": torch.ones(3)})
        port = host._http.server_port
        for path in ("/", "/x/a", "/%C3%BC/a", "/\xfc\xe4/a", "/" + host._secret, "/" + host._secret + "/b", "/health"):
            status, body = ask(port, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode("latin-1"))
            assert (status, json.loads(body)) == (404, {"error": {"message": "there is nothing here"}})
        assert ask(port, post(GOOD, path=f"/{host._secret}/a"))[0] == 404
        assert host.sent == 0
        with urllib.request.urlopen(url) as response:
            assert len(response.read()) == host.sent > 0
    finally:
        host.close()
    assert capsys.readouterr().err == ""


def test_the_weight_host_answers_every_probe_with_a_refusal(capsys):
    host = WeightHost("http://127.0.0.1:9")
    try:
        url = host.offer("a", {"w": torch.ones(3)})
        for name, (data, _, _) in PROBES.items():
            status, body = ask(host._http.server_port, data)
            assert status >= 400 or (status, body) == (0, b""), name
            assert not body or len(json.loads(body)["error"]["message"].splitlines()) == 1, name
        assert host.sent == 0
        for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(urllib.request.Request(url, headers=headers))
    finally:
        host.close()
    assert "Traceback" not in capsys.readouterr().err


def test_secrets_of_any_letters_can_be_compared():
    assert same("a", "a")
    assert not any(same(given, "a") for given in ("", "b", "\xfc", "\udc80", "aa"))


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--port", "99999"], "--port is 99999, expected a number from 0 to 65535.\n"),
        (["--port", "-1"], "--port is -1, expected a number from 0 to 65535.\n"),
        (["--timeout", "nan"], "--timeout is nan, expected seconds.\n"),
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines ask, which takes a token: export POSTTRAIN_TOKEN="),
        (["--host", "x" * 70 + ".example"], "--host xxx"),
    ],
)
def test_flags_that_cannot_be_served(flags, text, capsys, monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)
    assert main(["serve-rewards", "gsm8k", *flags]) == 2
    found = capsys.readouterr().err
    assert found.startswith(text)
    assert len(found.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--port", "99999"], "--port is 99999, expected a number from 1 to 65535.\n"),
        (["--max-length", "0"], "--max-length is 0, expected a number from 1 upwards.\n"),
        (["--batch-size", "-1"], "--batch-size is -1, expected a number from 1 upwards.\n"),
        (["--lora-rank", "-1"], "--lora-rank is -1, expected a number from 0 upwards.\n"),
        (["--gpu-memory", "nan"], "--gpu-memory is nan, expected a share above 0, at most 1.\n"),
        (["--gpu-memory", "1.5"], "--gpu-memory is 1.5, expected a share above 0, at most 1.\n"),
    ],
)
def test_flags_with_which_no_rollout_server_runs(flags, text, capsys):
    """vLLM's server would end and be started again before its own message says why."""
    assert main(["serve-rollouts", "model", *flags]) == 2
    found = capsys.readouterr().err
    assert found.startswith(text)
    assert len(found.splitlines()) == 1


@pytest.mark.parametrize("command", ["serve-rollouts", "serve-rewards"])
def test_a_port_that_is_taken_is_one_line(server, command, capsys):
    port = server.server_port
    assert main([command, "gsm8k", "--port", str(port)]) == 2
    text = f"Nothing can listen on 127.0.0.1:{port}: Address already in use. Choose another --port.\n"
    assert capsys.readouterr().err == text


@pytest.mark.parametrize("host", ["0.0.0.0", "no such host"])
def test_a_rollout_server_beyond_this_machine_says_who_can_ask(server, host, capsys):
    """Its port is taken here, so that none is started."""
    assert main(["serve-rollouts", "model", "--host", host, "--port", str(server.server_port)]) == 2
    warning, error = capsys.readouterr().err.splitlines()
    text = f"whoever reaches {host}:{server.server_port} can sample and replace the weights, without a token"
    assert warning == f"serve-rollouts: {text}"
    assert error.startswith(f"Nothing can listen on {host}:{server.server_port}: ")


@pytest.mark.parametrize("numbers", [[signal.SIGTERM, signal.SIGTERM], [signal.SIGINT, signal.SIGTERM]])
def test_signals_end_the_command_quietly(numbers):
    command = [sys.executable, "-m", "posttrain", "serve-rewards", "gsm8k", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr.readline().startswith("serve-rewards: http://127.0.0.1:")
    for number in numbers:
        os.kill(process.pid, number)
    assert process.wait(60) == 0
    assert process.stderr.read() == ""
