"""Drawings of the rooms, in the README and in docs/architecture.md, agree with the order that test_rooms.py holds."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "core" / "posttrain"
ROOMS = ast.parse((ROOT / "tests" / "test_rooms.py").read_text())
ORDER = next(
    ast.literal_eval(node.value)
    for node in ROOMS.body
    if isinstance(node, ast.Assign) and node.targets[0].id == "ORDER"
)


def test_tree_of_the_readme_names_every_room_once_in_the_order_of_imports():
    tree = re.search(r"(?ms)^core/posttrain/.*?^```", (ROOT / "README.md").read_text())[0].splitlines()[:-1]
    inner = [line for line in tree if line.startswith("  ")]
    named = [word for line in inner for word in re.match(r"  ((?:\S+ )+) ", line)[1].split()]
    rooms = [f"{path.parent.name}/" for path in CORE.glob("*/__init__.py")]
    files = [path.name for path in CORE.glob("*.py") if not path.name.startswith("__")]
    assert sorted(named) == sorted(rooms + files)
    level = {room: number for number, line in enumerate(ORDER) for room in line}
    levels = [level[name.removesuffix(".py").rstrip("/")] for name in named]
    assert levels == sorted(levels)
    for line in tree:
        if line not in inner:
            assert (ROOT / line.split()[0]).is_dir(), line
    for folder in re.findall(r"[\w/]+/(?=[\s):])|[a-z]+/[a-z]+(?=:)", "\n".join(inner)):
        assert (CORE / folder).is_dir() or list(CORE.glob(f"*/{folder}")), folder
