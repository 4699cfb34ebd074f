"""``posttrain verify RUN``: check that the files on disk, and what was made from them, are the trained model."""

from __future__ import annotations

from posttrain.cli.flags import Parser
from posttrain.cli.output import print_json


def run(arguments: list[str]) -> int:
    """Print one verdict a line; return 1 where one of them is bad."""
    parser = Parser("verify", "Hold a run's model, and what was made from it, against what was trained.")
    parser.add_argument("model", help="run directory, or the folder of a model")
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        help="merged (the adapter put into its base), vllm (the real engine), a .gguf file, the folder of a model; "
        "several with commas, may be repeated",
    )
    parser.add_argument("--tolerance", type=float, help="largest difference of a log-prob [by the type of the weights]")
    parser.add_argument("--trust-remote-code", metavar="BASE", help="name of the model whose own Python code may run")
    parser.add_json()
    options = parser.parse_args(arguments)
    from posttrain.models.verify_files import verify

    against = [name for text in options.against for name in text.split(",") if name]
    verdicts = verify(options.model, against, tolerance=options.tolerance, trust_remote_code=options.trust_remote_code)
    if options.json:
        print_json([verdict.record() for verdict in verdicts])
    else:
        print("\n".join(verdict.line() for verdict in verdicts))
    return 0 if all(verdict.good for verdict in verdicts) else 1
