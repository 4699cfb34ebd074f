"""``posttrain serve-rewards REWARD``: rewards in a process of their own, for runs on this machine or others."""

from __future__ import annotations

import signal
import sys
import threading

from posttrain.cli.flags import Parser
from posttrain.errors import SettingsError


def run(arguments: list[str]) -> int:
    """Serve until interrupted."""
    parser = Parser("serve-rewards", "Score completions for runs: train ... --reward http://HOST:PORT")
    parser.add_argument("reward", nargs="+", help="rewards as --reward takes them")
    parser.add_argument("--reward-options", action="append", default=[], metavar="NAME.OPTION=VALUE")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on, in a network you trust [127.0.0.1]")
    parser.add_argument("--port", type=int, default=8100, help="port to listen on; 0 takes a free one [8100]")
    options = parser.parse_args(arguments)
    from posttrain.rewards import load_rewards
    from posttrain.rewards.worker import ScoreServer

    pairs = dict(word.split("=", 1) for word in options.reward_options if "=" in word)
    rewards = load_rewards(options.reward, pairs)
    try:
        server = ScoreServer(rewards, options.host, options.port)
    except OSError as error:
        raise SettingsError(
            f"Nothing can listen on {options.host}:{options.port}: {error.strerror}. Choose another --port."
        ) from None
    stop = threading.Thread(target=server.shutdown, daemon=True)  # not from the thread that serves
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.start())
    print(f"serve-rewards: http://{options.host}:{server.server_port}", file=sys.stderr, flush=True)
    server.serve_forever(poll_interval=0.1)
    return 0
