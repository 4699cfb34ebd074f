"""Drawings of the rooms in docs/architecture.md agree with the order that test_rooms.py holds."""

import ast
import re
from dataclasses import fields
from pathlib import Path

from posttrain.settings import SECTIONS
from posttrain.training.run import Run

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "core" / "posttrain"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
ROOMS = ast.parse((ROOT / "tests" / "test_rooms.py").read_text())
ORDER = next(
    ast.literal_eval(node.value)
    for node in ROOMS.body
    if isinstance(node, ast.Assign) and node.targets[0].id == "ORDER"
)


def test_tree_of_folders_names_every_room_once_in_the_order_of_imports():
    tree = re.search(r"(?ms)^core/posttrain/.*?^```", PAGE)[0].splitlines()[:-1]
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


def test_drawing_has_the_rooms_in_the_lines_of_the_order():
    drawing = PAGE.split("```\n")[1]
    rooms = {room for line in ORDER for room in line}
    lines = [re.split(r"  +", line[11:])[0] for line in drawing.splitlines()]
    drawn = [tuple(line.split(" | ")) for line in lines if line]
    assert [set(line) for line in drawn] == [set(line) for line in ORDER]
    assert {room for line in drawn for room in line} == rooms


def test_sections_and_parts_of_a_run_exist():
    parts = re.findall(r"\| `run\.(\w+)` \|", PAGE)
    assert parts == [field.name for field in fields(Run)][: len(parts)] != []
    for section in re.findall(r"`settings\.(\w+)`", PAGE):
        assert section in SECTIONS
