"""``posttrain serve-rewards REWARD``: rewards in a separate process, for runs on this machine or others."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from posttrain.cli.flags import Parser, check_range
from posttrain.errors import SettingsError
from posttrain.servers.listener import LOOPBACK, TOKEN, address_errors


def run(arguments: list[str]) -> int:
    """Serve until interrupted."""
    parser = Parser("serve-rewards", "Score completions for runs: train ... --reward http://HOST:PORT")
    parser.add_argument("reward", nargs="+", help="rewards as --reward takes them")
    parser.add_argument("--reward-options", action="append", default=[], metavar="NAME.OPTION=VALUE")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; beyond this machine with a token [127.0.0.1]"
    )
    parser.add_argument("--port", type=int, default=8100, help="port to listen on; 0 takes a free one [8100]")
    parser.add_argument(
        "--timeout", type=float, default=500.0, help="seconds for one batch; a run waits 600 for its answer [500]"
    )
    options = parser.parse_args(arguments)
    token = _token(options.host)
    check_range("--port", options.port, 0, 65535)
    if not 0 < options.timeout < 1e8:
        raise SettingsError(f"--timeout is {options.timeout:g}, expected seconds.")
    from posttrain.rewards import load_rewards
    from posttrain.rewards.worker import ScoreServer

    pairs = dict(word.split("=", 1) for word in options.reward_options if "=" in word)
    rewards = load_rewards(options.reward, pairs, limit=options.timeout)
    with address_errors(options.host, options.port):
        server = ScoreServer(rewards, options.host, options.port, token)
    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stop.append(number))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    print(f"serve-rewards: http://{options.host}:{server.server_port}", file=sys.stderr, flush=True)
    while not stop:  # a signal just before a wait without an end would not end it, and an event's lock is held by it
        time.sleep(0.1)
    server.shutdown()
    server.server_close()
    return 0


def _token(host: str) -> str | None:
    """Return the environment's token. Raises SettingsError where other machines could connect without one."""
    token = os.environ.get(TOKEN) or None
    if token is None and host not in LOOPBACK:
        raise SettingsError(
            f"--host {host} lets other machines ask, which takes a token: export {TOKEN}=WORD here and where the run "
            "is. Without one, only this machine can ask: --host 127.0.0.1"
        )
    if token is not None and not (token.isascii() and token.isprintable()):
        raise SettingsError(f"The environment variable {TOKEN} holds characters that cannot be sent.")
    return token
