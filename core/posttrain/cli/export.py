"""``posttrain export RUN FOLDER``: an adapter and its base as one model."""

from __future__ import annotations

from posttrain.cli.flags import Parser
from posttrain.cli.output import print_json


def run(arguments: list[str]) -> int:
    """Merge and save; the adapter stays unchanged."""
    parser = Parser("export", "Put a trained adapter into its base's weights and save one model.")
    parser.add_argument("model", help="run directory or adapter folder")
    parser.add_argument("folder", help="where the model is written; new or empty")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="type of the weights [that of the run]")
    parser.add_argument(
        "--onto",
        choices=("trained", "full"),
        default="trained",
        help="the weights that training saw (of a quantised base the dequantised ones), or the base's own [trained]",
    )
    parser.add_argument("--trust-remote-code", metavar="BASE", help="name of the base whose own Python code may run")
    parser.add_json()
    options = parser.parse_args(arguments)
    from posttrain.models.export import export

    done = export(
        options.model,
        options.folder,
        dtype=options.dtype,
        onto=options.onto,
        trust_remote_code=options.trust_remote_code,
    )
    if options.json:
        print_json(done)
    else:
        print(f"merged {done['adapter']} into {done['base']} ({done['onto']}); saved: {done['folder']}")
    return 0
