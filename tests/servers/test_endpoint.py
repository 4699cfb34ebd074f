import threading

import pytest
from posttrain.errors import SettingsError
from posttrain.servers.endpoint import Endpoint, Refused, Unreachable, read_key, split_address


def test_busy_servers_are_asked_again_after_longer_and_longer_waits(serve, waits):
    statuses = iter([500, 503, 429, 200])
    fake = serve(lambda path, payload: (next(statuses), {"path": path, "got": payload}))
    assert Endpoint(fake.url + "/").post("/x", {"a": [1]}) == {"path": "/v1/x", "got": {"a": [1]}}
    assert waits == [1.0, 2.0, 4.0]
    assert fake.asked == [{"a": [1]}] * 4


def test_a_servers_own_wait_is_kept_up_to_a_minute(serve, waits):
    replies = iter([(429, b"", {"Retry-After": "7"}), (429, b"", {"Retry-After": "9999"}), (200, 5)])
    assert Endpoint(serve(lambda *_: next(replies)).url).post("/x", {}) == 5
    assert waits == [7.0, 60.0]


def test_the_last_reason_is_told(serve, waits, nowhere):
    fake = serve(lambda *_: (502, {"error": {"message": "no\nworkers"}}))
    with pytest.raises(Unreachable) as caught:
        Endpoint(fake.url, attempts=3).post("/x", {})
    assert str(caught.value) == "status 502: no workers, 3 attempts"
    assert len(fake.seen) == 3
    with pytest.raises(Unreachable) as caught:
        Endpoint(nowhere).post("/x", {}, attempts=1)
    assert str(caught.value) == "Connection refused"


def test_silence_ends_by_the_timeout(serve):
    done = threading.Event()
    fake = serve(lambda *_: (done.wait(5), (200, {}))[1])
    with pytest.raises(Unreachable) as caught:
        Endpoint(fake.url, timeout=0.1, attempts=2).post("/x", {})
    done.set()
    assert str(caught.value) == "no answer in 0.1 seconds, 2 attempts"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"plain words", "400: plain words"),
        ({"error": {"message": "mended?"}}, "400: mended?"),
        ({"detail": [{"loc": "x"}]}, '400: [{"loc": "x"}]'),
        ({"object": "error", "message": "flat"}, "400: flat"),
        (b"", "400: Bad Request"),
        (b"w" * 999, "400: " + "w" * 297 + "..."),
    ],
)
def test_a_mistake_in_the_question_is_not_repeated(serve, waits, body, text):
    fake = serve(lambda *_: (400, body))
    with pytest.raises(Refused) as caught:
        Endpoint(fake.url).post("/x", {})
    assert (str(caught.value), caught.value.status, len(fake.seen), waits) == (text, 400, 1, [])


def test_what_is_no_json_is_refused(serve):
    with pytest.raises(Refused, match="what is no JSON: '<html>'"):
        Endpoint(serve(lambda *_: (200, b"<html>")).url).post("/x", {})


def test_a_key_is_sent_and_never_told(serve):
    fake = serve(lambda *_: (401, {"error": {"message": "bad key sk-secret"}}))
    with pytest.raises(Refused) as caught:
        Endpoint(fake.url, key="sk-secret").post("/x", {})
    assert fake.headers[0]["Authorization"] == "Bearer sk-secret"
    assert str(caught.value) == "401: bad key ***"


def test_a_key_does_not_follow_a_redirect(serve):
    other = serve(lambda *_: (200, {}))
    fake = serve(lambda *_: (307, b"", {"Location": f"{other.url}/y"}))
    with pytest.raises(Refused) as caught:
        Endpoint(fake.url, key="sk-secret").post("/x", {})
    assert str(caught.value) == f"307: it has moved to {other.url}/y"
    assert other.seen == []


def test_questions_are_asked_at_the_same_time_and_answered_in_order(serve):
    gate = threading.Barrier(3)  # breaks unless three are under way at once
    fake = serve(lambda path, payload: (gate.wait(5), (200, payload["n"]))[1])
    endpoint = Endpoint(fake.url, workers=3)
    assert endpoint.each(lambda n: endpoint.post("/x", {"n": n}), range(9)) == list(range(9))
    assert fake.most_at_once == 3


def test_models(serve):
    fake = serve(lambda *_: (200, {"data": [{"id": "one"}, {"id": "two"}]}))
    assert Endpoint(fake.url).models() == ["one", "two"]
    assert fake.seen == [("/v1/models", None)]


def test_addresses():
    assert split_address("http://h:1/v1/#org/name:7b", "judge") == ("http://h:1/v1", "org/name:7b")
    assert split_address("https://h", "judge") == ("https://h", None)

    def text(address):
        with pytest.raises(SettingsError) as caught:
            split_address(address, "judge")
        return str(caught.value)

    form = "Expected http://HOST:PORT/v1#MODEL."
    assert text("http://me:hush@h/v1") == (
        f"judge: the address of 'h' holds a user or a query. Keys come from an environment variable. {form}"
    )
    assert "hush" not in text("http://h/v1?key=hush")
    assert text("http://h:port/v1").startswith("judge: the address cannot be read (Port could not be cast")
    assert text("http:///v1") == f"judge: 'http:///v1' is no address. {form}"


def test_keys(monkeypatch):
    """A key that was not named for a server goes there only encrypted, or within this machine."""
    assert read_key("https://h/v1", None) is None
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1\n")
    assert read_key("https://h/v1", None) == read_key("http://localhost:1/v1", None) == "sk-1"
    assert read_key("http://h/v1", None) is None
    monkeypatch.setenv("MINE", "sk-2")
    assert read_key("http://h/v1", "MINE") == "sk-2"
    with pytest.raises(SettingsError) as caught:
        read_key("http://h/v1", "THEIRS")
    assert str(caught.value) == "key_env names the environment variable 'THEIRS', which is not set. Export it."
    monkeypatch.setenv("MINE", "sk\n2")
    with pytest.raises(SettingsError) as caught:
        read_key("http://h/v1", "MINE")
    assert str(caught.value) == "The environment variable 'MINE' holds characters that no key has."
