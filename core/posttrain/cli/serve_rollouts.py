"""``posttrain serve-rollouts MODEL``: vLLM's own server, set up to take weights from a run and kept running."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading

from posttrain.cli.flags import Parser, check_range
from posttrain.errors import SettingsError
from posttrain.servers.listener import LOOPBACK, address_errors, family_of


def run(arguments: list[str]) -> int:
    """Serve until interrupted; arguments after ``--`` go to vLLM."""
    place = arguments.index("--") if "--" in arguments else len(arguments)
    options = _flags(arguments[:place])
    _check(options)
    from posttrain.generation.vllm.process import ServerOptions, supervise
    from posttrain.generation.vllm.versions import check_installed

    check_installed()
    server = ServerOptions(
        model=options.model,
        host=options.host,
        port=options.port,
        dtype=options.dtype,
        max_length=options.max_length,
        batch_size=options.batch_size,
        logprobs_mode=options.logprobs_mode,
        adapter_rank=options.lora_rank,
        gpu_memory=options.gpu_memory,
        dummy=options.dummy_weights,
        more=arguments[place + 1 :],
    )
    until = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # by a thread: the one that is interrupted may hold the event's lock
        signal.signal(number, lambda *_: threading.Thread(target=until.set).start())
    if options.with_parent:
        threading.Thread(target=_follow, args=(until,), daemon=True).start()
    _say(f"serving {server.model}; a run uses it with --generation http://{server.host}:{server.port}")
    return supervise(server, _say, until)


def _check(options: argparse.Namespace) -> None:
    """Raise SettingsError for values with which vLLM would end again and again; say who else can ask."""
    check_range("--port", options.port, 1, 65535)
    check_range("--max-length", 1 if options.max_length is None else options.max_length, 1)
    check_range("--batch-size", options.batch_size, 1)
    check_range("--lora-rank", options.lora_rank, 0)
    if not 0 < options.gpu_memory <= 1:
        raise SettingsError(f"--gpu-memory is {options.gpu_memory:g}, expected a share above 0, at most 1.")
    if options.host not in LOOPBACK:
        _say(f"whoever reaches {options.host}:{options.port} can sample and replace the weights, without a token")
    with address_errors(options.host, options.port), socket.socket(family_of(options.host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        probe.bind((options.host, options.port))


def _flags(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("serve-rollouts", "Serve a model for the rollouts of runs; vLLM's own flags may follow after --.")
    parser.add_argument("model", help="model folder or Hub id, the same as the run's --model")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on, in a network you trust [127.0.0.1]")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on [8000]")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help="[auto]")
    parser.add_argument("--max-length", type=int, help="longest prompt and answer together [the model's own]")
    parser.add_argument("--batch-size", type=int, default=64, help="completions in the making at one time [64]")
    parser.add_argument("--lora-rank", type=int, default=0, help="take adapters up to this rank [0]")
    parser.add_argument(
        "--logprobs-mode",
        default="raw_logprobs",
        choices=("raw_logprobs", "processed_logprobs"),
        help="raw_logprobs for runs at temperature 1, processed_logprobs for other temperatures [raw_logprobs]",
    )
    parser.add_argument("--gpu-memory", type=float, default=0.9, help="share of each GPU's memory [0.9]")
    parser.add_argument("--dummy-weights", action="store_true", help="read no weights; the run sends all of them")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input closes")
    return parser.parse_args(arguments)


def _follow(until: threading.Event) -> None:
    """Set ``until`` when the process that started this one is gone."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    until.set()


def _say(text: str) -> None:
    print(f"serve-rollouts: {text}", file=sys.stderr, flush=True)
