"""A real HTTP server in a thread, whose answers a test writes."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from posttrain.servers import endpoint


class Fake:
    """``answer(path, payload)`` gives (status, body) or (status, body, headers); ``seen`` holds what was asked."""

    def __init__(self, answer):
        self.answer = answer
        self.seen = []
        self.headers = []
        self.most_at_once = self.at_once = 0
        self.lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.reply(None)

            def do_POST(self):
                self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def reply(self, payload):
                with fake.lock:
                    fake.seen.append((self.path, payload))
                    fake.headers.append(dict(self.headers))
                    fake.at_once += 1
                    fake.most_at_once = max(fake.most_at_once, fake.at_once)
                status, body, *headers = fake.answer(self.path, payload)
                with fake.lock:
                    fake.at_once -= 1
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in (headers[0] if headers else {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *words):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request, address):
                pass  # a client that gave up waiting

        self.server = Server(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        self.url = f"http://{self.address}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def asked(self):
        """Payloads of the POSTs."""
        return [payload for _, payload in self.seen if payload is not None]


@pytest.fixture
def serve():
    """``serve(answer)`` starts a server that the test's end stops."""
    started = []

    def start(answer):
        started.append(Fake(answer))
        return started[-1]

    yield start
    for fake in started:
        fake.server.shutdown()
        fake.server.server_close()


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """The seconds between attempts, recorded instead of waited; no key of this machine."""
    found = []
    monkeypatch.setattr(endpoint.time, "sleep", found.append)
    monkeypatch.delenv(endpoint.KEY, raising=False)
    return found


@pytest.fixture
def nowhere():
    """An address at which nothing listens."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.server_close()
    return f"http://127.0.0.1:{server.server_port}/v1"
