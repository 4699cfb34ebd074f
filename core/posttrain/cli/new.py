"""``posttrain new NAME``: a new plugin."""

from __future__ import annotations

from pathlib import Path

from posttrain.authoring.losses import LOSSES
from posttrain.authoring.new import KINDS, new
from posttrain.cli.flags import Parser


def run(arguments: list[str]) -> int:
    """Write the plugin's folder and print the next steps."""
    parser = Parser("new", "Write a new plugin: it works, is tested and can be published as it stands.")
    parser.add_argument("name", help="lower-case words joined by hyphens, such as my-loss")
    parser.add_argument("--kind", choices=KINDS, default="method", help="what it is [method]")
    parser.add_argument("--schema", choices=tuple(LOSSES), default="preference", help="data it trains on [preference]")
    parser.add_argument("--modifier", action="store_true", help="a method that changes others: --modifier NAME")
    parser.add_argument("--parent", default=".", help="folder in which the new one is made [.]")
    options = parser.parse_args(arguments)
    folder = new(options.name, options.kind, options.schema, Path(options.parent), options.modifier)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        print(f"wrote {path}")
    if options.kind == "method":
        print(f"\nNext: posttrain check {_place(folder)}, then posttrain train {_place(folder)} --model ... --data ...")
    else:
        print(f"\nNext: pip install -e {_place(folder)}")
    return 0


def _place(folder: Path) -> str:
    return str(folder) if "/" in str(folder) else f"./{folder}"
