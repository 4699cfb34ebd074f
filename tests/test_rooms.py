"""The rooms of the core stand in one order, and each imports only from rooms below it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "core" / "posttrain"
#: From top to bottom. Rooms of one line know nothing of each other.
ORDER = (
    ("__main__",),
    ("cli",),
    ("authoring",),
    ("__init__",),
    ("api",),
    ("evaluation",),
    ("assembly",),
    ("rollouts",),
    ("generation", "distributed"),
    ("training",),
    ("distillation", "rewards"),
    ("models", "data"),
    ("runs", "example"),
    ("network", "catalogue"),
    ("contract", "environments", "settings"),
    ("sandbox",),
    ("servers",),
    ("errors",),
)
#: Imports that go upwards all the same: (file, module) -> why. This list only gets shorter.
EXCEPTIONS = {}
ROOMS, LOOSE_FILES = 23, 4


def room_of(module):
    return module.split(".")[1] if "." in module else "__init__"


def imported(tree):
    """Modules that a file imports, wherever the statement stands: at its top, in a function, for type checkers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute here"
            if node.module == "posttrain":
                yield from ((node.lineno, home(alias.name)) for alias in node.names)
            else:
                yield node.lineno, str(node.module)


def home(name):
    """Where ``from posttrain import name`` leads: to a room, to a loose file, or to a name that __init__ exports."""
    if (CORE / name).is_dir() or (CORE / f"{name}.py").is_file():
        return f"posttrain.{name}"
    return "" if name == "__version__" else "posttrain"


def upward(file, text):
    """Imports of ``file`` that lead to a room above its own or beside it, as (module, sentence)."""
    level = {room: number for number, line in enumerate(ORDER) for room in line}
    own = file.split("/")[0].removesuffix(".py")
    for line, module in imported(ast.parse(text)):
        if module.split(".")[0] != "posttrain" or (module == "posttrain" and is_package_alone(text, line)):
            continue
        room = room_of(module)
        if room != own and level[room] <= level[own]:
            yield module, f"{file}:{line} imports {module}: {own} is not above {room}"


def is_package_alone(text, line):
    """Whether the line is ``import posttrain``, which alone imports no room."""
    return text.splitlines()[line - 1].strip() == "import posttrain"


def files():
    # a script is no part of a room: it uses the library as its users do
    paths = [path for path in CORE.rglob("*.py") if path.name != "__main__.py"]
    return {str(path.relative_to(CORE)): path for path in sorted(paths)}


@pytest.mark.parametrize("file", files())
def test_a_room_imports_only_rooms_below(file):
    if file == "__init__.py":
        return  # exports everything, lazily
    found = [(module, sentence) for module, sentence in upward(file, files()[file].read_text(encoding="utf-8"))]
    assert [sentence for module, sentence in found if (file, module) not in EXCEPTIONS] == []


def test_exceptions_are_still_needed():
    found = {(file, module) for file, path in files().items() for module, _ in upward(file, path.read_text("utf-8"))}
    assert set(EXCEPTIONS) <= found, "an arrow is gone: take it out of EXCEPTIONS"


def test_every_room_has_its_place_and_their_number_is_bounded():
    rooms = {path.name for path in CORE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    loose = {path.stem for path in CORE.glob("*.py")}
    named = {name for line in ORDER for name in line}
    assert rooms | loose == named
    assert len(rooms) <= ROOMS
    assert len(loose) <= LOOSE_FILES


def test_every_room_says_what_it_is_for():
    for path in CORE.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("network/planted.py", "from posttrain.training.run import Run"),
        ("network/planted.py", "def f():\n    from posttrain import api"),
        ("network/planted.py", "def f():\n    import posttrain.cli.main"),
        ("models/planted.py", "if TYPE_CHECKING:\n    from posttrain.data.rows import Rows"),
        ("errors.py", "from posttrain.settings import Settings"),
        ("training/planted.py", "from posttrain import train"),
    ],
)
def test_a_planted_import_is_found(file, text):
    assert len(list(upward(file, text))) == 1


def test_imports_downwards_and_within_a_room_are_fine():
    text = "import posttrain\nfrom posttrain import __version__, errors\nfrom posttrain.data.rows import Rows"
    assert list(upward("data/planted.py", text)) == []
