"""Static checks of the module's text: options, docstring, imports, size. The module is parsed, never imported."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from posttrain.contract import hookspecs
from posttrain.errors import MethodError
from posttrain.settings import Settings

from posttrain_testkit.registry import CheckFailed, check
from posttrain_testkit.subject import Subject

MODULE_LINES = 150
FUNCTION_LINES = 60
#: Statements allowed at the top level of a module: definitions without side effects.
_DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)


@check("static")
def check_options_are_documented(subject: Subject) -> None:
    """The options are a frozen dataclass: every field has a type, a default, and a string under it."""
    config = _config_class(subject)
    if not any("dataclass" in ast.unparse(one) and "frozen=True" in ast.unparse(one) for one in config.decorator_list):
        raise CheckFailed(
            f"Class Config (line {config.lineno}) is not marked @dataclass(frozen=True).",
            "Usual cause: options that can change under a running method. Write @dataclass(frozen=True) above it.",
        )
    body = config.body
    for statement, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.Assign):
            raise CheckFailed(
                f"Option '{ast.unparse(statement.targets[0])}' (line {statement.lineno}) has no type.",
                "Usual cause: '=' without an annotation, which a dataclass does not see. Write name: type = default.",
            )
        if not isinstance(statement, ast.AnnAssign):
            continue
        name = ast.unparse(statement.target)
        if statement.value is None:
            raise CheckFailed(
                f"Option '{name}' (line {statement.lineno}) has no default.",
                "Usual cause: a value left to the user. Give the paper's value and name its source.",
            )
        if not _is_text(following):
            raise CheckFailed(
                f"Option '{name}' (line {statement.lineno}) has no string under it.",
                "Usual cause: a comment instead of a string. The string becomes the help of the flag.",
            )


@check("static")
def check_options_do_not_clash(subject: Subject) -> None:
    """No option has the name of an option that every run shares."""
    shared = set(Settings().flat())
    for statement in _config_class(subject).body:
        if isinstance(statement, ast.AnnAssign) and ast.unparse(statement.target) in shared:
            name = ast.unparse(statement.target)
            raise CheckFailed(
                f"Option '{name}' (line {statement.lineno}) is also an option of every run.",
                "Usual cause: the same word for two things. Choose another name, or set it in [defaults] of the card.",
            )


@check("static")
def check_docstring_has_its_sections(subject: Subject) -> None:
    """The module's docstring explains the metrics, and how the method differs from its paper."""
    text = ast.get_docstring(_main_tree(subject)) or ""
    wanted = {"Metrics:": "metrics:"}
    if subject.card.paper:
        wanted["Differs from the paper:"] = "differs from"
    for title, needle in wanted.items():
        if needle not in text.lower():
            raise CheckFailed(
                f"The module's docstring of {len(text)} characters has no section '{title}'.",
                "Usual cause: a module without the prose that makes it readable in five minutes. Add the section.",
            )


@check("static")
def check_imports_are_declared(subject: Subject) -> None:
    """Only the standard library, torch, posttrain and the card's requirements are imported; never another method."""
    own = subject.package.name
    allowed = {"torch", "posttrain", own, *modules_of(set(subject.card.requires))}
    for where, top in undeclared_imports(subject.modules, allowed):
        if top.startswith("posttrain_method_"):
            raise CheckFailed(
                f"{where} imports the method '{top}'.",
                "Usual cause: code shared between methods. Methods stand alone: copy the few lines.",
            )
        raise CheckFailed(
            f"{where} imports '{top}', which is not in requires of method.toml.",
            "Usual cause: a package that is there by chance. Add it to requires, or do without.",
        )


def undeclared_imports(files: Iterable[Path], allowed: set[str]) -> Iterator[tuple[str, str]]:
    """Yield the place and the top-level module of every import that neither Python nor ``allowed`` provides."""
    for file in files:
        for name, line in _imported(_tree(file)):
            top = name.partition(".")[0]
            if top not in allowed and top not in sys.stdlib_module_names:
                yield f"{file.name} line {line}", top


@check("static")
def check_module_is_within_budget(subject: Subject) -> None:
    """No module is longer than 150 lines, no function longer than 60."""
    for file in subject.modules:
        lines = len(file.read_text(encoding="utf-8").splitlines())
        if lines > MODULE_LINES:
            raise CheckFailed(
                f"{file.name} has {lines} lines, the budget is {MODULE_LINES}.",
                "Usual cause: work that belongs to the core. A method is options, mathematics and prose.",
            )
        for node in ast.walk(_tree(file)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES:
                    raise CheckFailed(
                        f"Function {node.name} in {file.name} has {length} lines, the budget is {FUNCTION_LINES}.",
                        "Usual cause: several steps in one function. Give each its name.",
                    )


@check("static")
def check_import_does_nothing(subject: Subject) -> None:
    """Importing the module defines names and does nothing else."""
    for file in subject.modules:
        for statement in _tree(file).body:
            if not isinstance(statement, _DEFINITIONS) and not _is_text(statement) and not _is_type_checking(statement):
                raise CheckFailed(
                    f"{file.name} line {statement.lineno} runs at import: {_first_line(statement)}",
                    "Usual cause: set-up at module level. Do it in the hook that needs it.",
                )


@check("static")
def check_hooks_are_known(subject: Subject) -> None:
    """Every hook has a name of the contract and takes only that hook's arguments."""
    for node in _main_tree(subject).body:
        if not isinstance(node, ast.FunctionDef) or not any("hookimpl" in ast.unparse(d) for d in node.decorator_list):
            continue
        spec = getattr(hookspecs, node.name, None)
        if spec is None:
            known = [name for name in vars(hookspecs) if name.startswith("posttrain_")]
            raise CheckFailed(
                f"'{node.name}' (line {node.lineno}) is no hook. Hooks: {', '.join(known)}.",
                "Usual cause: a spelling mistake, or a hook of a newer version of posttrain.",
            )
        taken = spec.__code__.co_varnames[: spec.__code__.co_argcount]
        for argument in node.args.args:
            if argument.arg not in taken:
                raise CheckFailed(
                    f"{node.name} (line {node.lineno}) takes '{argument.arg}'. The hook has: {', '.join(taken)}.",
                    "Usual cause: an argument of another hook. What a hook may know is written in hookspecs.py.",
                )


def _tree(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    except SyntaxError as error:
        raise MethodError(f"{file} line {error.lineno}: {error.msg}.") from None
    except UnicodeDecodeError as error:
        raise MethodError(f"{file}: is not UTF-8 ({error.reason} at byte {error.start}).") from None


def _main_tree(subject: Subject) -> ast.Module:
    file = subject.package / "__init__.py"
    if not file.is_file():
        raise MethodError(
            f"{subject.package}: has no __init__.py. A method is a package whose __init__.py holds its hooks."
        )
    return _tree(file)


def _config_class(subject: Subject) -> ast.ClassDef:
    for node in _main_tree(subject).body:
        if isinstance(node, ast.ClassDef) and node.name == "Config":
            return node
    raise CheckFailed(
        "The module has no class Config.",
        "Usual cause: options under another name. Every method has a Config, be it empty.",
    )


def _imported(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield each module that the code imports, also inside functions and through importlib, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module, node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            known = node.args and isinstance(node.args[0], ast.Constant)
            yield (str(node.args[0].value) if known else "a name made at run time"), node.lineno  # type: ignore[attr-defined]  # known


def modules_of(requirements: set[str]) -> set[str]:
    """Return the import names of ``requirements``: by the installed metadata, else the normalised name."""
    wanted = {_normal(Requirement(line).name) for line in requirements} - {"posttrain", "torch"}
    if not wanted:
        return set()
    modules = {name.replace("-", "_") for name in wanted}
    for module, owners in packages_distributions().items():
        if wanted & {_normal(owner) for owner in owners}:
            modules.add(module)
    return modules


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _first_line(statement: ast.stmt) -> str:
    return ast.unparse(statement).splitlines()[0][:80]


def _is_text(statement: ast.stmt | None) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
        and bool(statement.value.value.strip())
    )


def _is_type_checking(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and ast.unparse(statement.test).endswith("TYPE_CHECKING")
