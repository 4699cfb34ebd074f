"""Entry points of plugins: found without importing anything, and loaded in one place with one check.

A broken package (metadata that is not UTF-8, malformed entry points) is a row with its problem and does not affect
other packages' rows.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import importlib_metadata
from importlib_metadata import Distribution

from posttrain.catalogue import permission
from posttrain.errors import DependencyError, PluginError

#: Kind of plugin -> its entry point group.
GROUPS = {kind: f"posttrain.{kind}s" for kind in ("method", "reward", "source", "observer", "rule", "environment")}
_HEADER = re.compile(r"^(Name|Version):[ \t]*(\S+)", re.MULTILINE)
_VALUE = re.compile(r"[A-Za-z_]\w*(\.\w+)*(\s*:\s*[A-Za-z_]\w*(\.\w+)*)?(\s*\[.*\])?")


@dataclass(frozen=True)
class Entry:
    """One entry point of an installed package; ``problem`` says in one line why it cannot be loaded."""

    kind: str
    name: str
    value: str
    package: str
    version: str
    distribution: Distribution | None = None
    problem: str | None = None

    @property
    def module(self) -> str:
        """Module that it names."""
        return self.value.partition("[")[0].partition(":")[0].strip()

    @property
    def attribute(self) -> str:
        """Object in the module; empty for the module itself."""
        return self.value.partition("[")[0].partition(":")[2].strip()


def entries(kind: str | None = None, name: str | None = None) -> list[Entry]:
    """List the entry points of all installed packages, optionally of one kind and one name."""
    found: dict[tuple[str, ...], Entry] = {}
    for distribution in _distributions():
        for entry in _of(distribution, kind, name):
            # An editable install and a folder on the path can list the same entry point twice.
            found.setdefault((entry.kind, entry.name, entry.value, entry.package, entry.version), entry)
    return list(found.values())


def one(kind: str, name: str) -> Entry | None:
    """Return the entry point of that kind and name, None without one. Raises PluginError for several packages'."""
    found = {entry.value: entry for entry in entries(kind, name)}
    if len(found) > 1:
        packages = " and ".join(sorted(entry.package for entry in found.values()))
        raise PluginError(f"{kind.capitalize()} '{name}' is provided by {packages}. Uninstall one.")
    return next(iter(found.values()), None)


def load_entry(entry: Entry) -> Any:
    """Load the object that ``entry`` names, if allowed. Raises SettingsError, PluginError, DependencyError."""
    if entry.problem:
        raise PluginError(f"{entry.kind.capitalize()} '{entry.name}' of {entry.package} is broken: {entry.problem}")
    own = entry.module.partition(".")[0] == "posttrain"  # this very package, whatever names it
    value: Any = import_plugin(entry.kind, entry.name, entry.module, entry.package, own)
    try:
        for part in filter(None, entry.attribute.split(".")):
            value = getattr(value, part)
    except AttributeError as error:
        raise PluginError(f"{entry.kind.capitalize()} '{entry.name}' is '{entry.value}', but {error}.") from None
    return value


def import_plugin(kind: str, name: str, module: str, origin: str, own: bool, folder: Path | None = None) -> ModuleType:
    """Import a plugin's module, from ``folder`` if it is not installed: the only import of plugin code.

    ``own``: it belongs to posttrain itself, in the released files; all others need permission. Any exception of the
    import becomes one line.
    """
    if not own:
        permission.check(kind, name, origin)
    try:
        return _installed(module) if folder is None else _from_folder(module, folder)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == module.partition(".")[0]:
            raise PluginError(f"Plugin '{name}' cannot be imported: {error}.") from error
        missing = error.name.partition(".")[0]
        raise DependencyError(
            f"Plugin '{name}' needs the module '{missing}', which is not installed. "
            f"List it under requires in the plugin's card and install it, e.g. with: pip install {missing}"
        ) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may raise anything, even SystemExit, and must not end the host
        detail = " ".join(str(error).split())
        reason = f"{type(error).__name__}: {detail}" if detail else type(error).__name__
        raise PluginError(f"Plugin '{name}' cannot be imported: {reason}") from error


#: Modules of ``sys.modules`` that were read from a folder: the installed plugin of the same name differs.
_FROM_FOLDERS: set[str] = set()


def _installed(name: str) -> ModuleType:
    if name in _FROM_FOLDERS:
        _forget(name)
    return importlib.import_module(name)


def _forget(name: str) -> None:
    for loaded in [key for key in sys.modules if key == name or key.startswith(name + ".")]:
        del sys.modules[loaded]
    _FROM_FOLDERS.discard(name)


def _from_folder(name: str, folder: Path) -> ModuleType:
    _forget(name)  # a folder is read again each time: its author is editing it
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} is not a Python package")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    _FROM_FOLDERS.add(name)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        _forget(name)
        raise
    return module


def _distributions() -> Iterator[Distribution]:
    """Yield installed packages, the first of each name on the path, which is the one that Python imports."""
    seen: set[str] = set()
    found: Iterable[Any] = importlib_metadata.distributions()  # its type differs between versions
    for distribution in found:
        try:
            name = str(getattr(distribution, "_normalized_name"))  # noqa: B009  from the folder's name; no file is read
        except Exception:  # unreadable metadata must not hide the package
            name = str(id(distribution))
        if name not in seen:
            seen.add(name)
            yield distribution


def _of(distribution: Distribution, kind: str | None, name: str | None) -> Iterable[Entry]:
    text, damage = _text(distribution, "entry_points.txt")
    if "[posttrain." not in text:
        return
    lines = [
        (own, line)
        for own, line in _lines(text)
        if kind in (None, own) and name in (None, line.partition("=")[0].strip())
    ]
    if not lines:
        return
    package, version, problem = identity(distribution)
    for own, line in lines:
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not key or not _VALUE.fullmatch(value):
            nonsense = f"its entry point is '{line[:80]}', expected NAME = MODULE or NAME = MODULE:OBJECT."
        else:
            nonsense = None
        yield Entry(own, key, value, package, version, distribution, damage or problem or nonsense)


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Yield kind and line of each entry point in an entry_points.txt."""
    kinds = {group: kind for kind, group in GROUPS.items()}
    kind = None
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            kind = kinds.get(line[1:-1].strip())
        elif kind is not None and line and not line.startswith(("#", ";")):
            yield kind, line


def identity(distribution: Distribution | None) -> tuple[str, str, str | None]:
    """Return name, version and problem of a package, from two header lines: a full e-mail parser is too slow."""
    text, problem = _text(distribution, "METADATA") if distribution is not None else ("", None)
    if distribution is not None and not text and problem is None:
        text, problem = _text(distribution, "PKG-INFO")
    headers = dict(reversed(_HEADER.findall(text.split("\n\n", 1)[0])))
    return headers.get("Name", "(unknown package)"), headers.get("Version", "?"), problem


def _text(distribution: Distribution, file: str) -> tuple[str, str | None]:
    """Read a file of the package's metadata, empty if absent; return it and what is wrong with it."""
    try:
        return distribution.read_text(file) or "", None
    except UnicodeDecodeError as error:
        readable = error.object.decode("utf-8", errors="replace")
        return readable, f"its {file} is not UTF-8 (byte {error.start + 1}). Install the package again."
    except (OSError, ValueError) as error:
        return "", f"its {file} cannot be read: {error}."
