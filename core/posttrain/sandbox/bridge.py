"""Connection between a program and its tests, each in a separate sandbox. Runs there, without posttrain.

The program never shares a process, a file or a result with the tests. It gets requests to call its functions and
answers with data: everything that it could find or change on its side (frames, modules, output, exit codes, files) is
its own, and the values that the tests expect are never there. Objects of classes stay on the side of the program; the
tests hold their numbers. An object that a function returns instead of data equals nothing and has no operators, so it
cannot agree with everything. An object that the tests themselves made by calling a class may do all that its class
does.
"""

import builtins
import json
import os
from typing import Any

_TYPES = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
_DATA = (str, bytes, int, float, list, tuple, set, dict)
#: Longest part of an error's text, and of a value that is shown.
LONGEST = 2000


class Ended(Exception):
    """The program has ended."""


class Line:
    """Connection of messages as lines of JSON."""

    def __init__(self, reads: int, writes: int):
        self.reads, self.writes = os.fdopen(reads, "rb"), os.fdopen(writes, "wb")

    def send(self, *message: Any) -> None:
        """Write one message."""
        try:
            self.writes.write(json.dumps(message).encode() + b"\n")
            self.writes.flush()
        except OSError:
            raise Ended("the program has ended") from None

    def receive(self) -> Any:
        """Read one message. Raises Ended where the other side is gone."""
        text = self.reads.readline()
        if not text.endswith(b"\n"):
            raise Ended("the program has ended")
        return json.loads(text)


class Peer:
    """One side. ``serves``: the other side may do more with this side's objects than call functions."""

    def __init__(self, line: Line, serves: bool):
        self.line, self.serves = line, serves
        self.objects: list[Any] = []
        self.last = ""
        self.classes: dict[str, type] = {}

    def pack(self, value: Any) -> Any:
        """Convert a value to JSON: data unchanged, anything else by its number."""
        if isinstance(value, Remote):
            return ["yours", value._number]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
            return value.item()
        for name, kind in _TYPES.items():
            if isinstance(value, kind):
                return [name, [self.pack(one) for one in kind.__iter__(value)]]
        if isinstance(value, dict):
            return ["dict", [[self.pack(key), self.pack(one)] for key, one in dict.items(value)]]
        if isinstance(value, bytes | bytearray):
            return ["bytes", value.hex()]
        if isinstance(value, complex):
            return ["complex", [value.real, value.imag]]
        self.objects.append(value)
        name = value.__name__ if isinstance(value, type) else type(value).__name__
        return ["mine", len(self.objects) - 1, name, "class" if isinstance(value, type) else ""]

    def unpack(self, data: Any, made: bool = False) -> Any:
        """Convert a value from JSON. ``made``: the tests made an object in it."""
        if not isinstance(data, list):
            return data
        kind, *rest = data
        if kind in _TYPES:
            return _TYPES[kind](self.unpack(one) for one in rest[0])
        if kind == "dict":
            return {self.unpack(key): self.unpack(one) for key, one in rest[0]}
        if kind == "bytes":
            return bytes.fromhex(rest[0])
        if kind == "complex":
            return complex(*rest[0])
        if kind == "yours":
            return self.objects[rest[0]]
        return Remote(self, int(rest[0]), str(rest[1]), made, rest[2] == "class")

    def ask(self, action: str, *words: Any, made: bool = False) -> Any:
        """Send a request, answer the other side's requests meanwhile, and return the result, or raise its error.

        Lists, sets and dictionaries among the arguments get the other side's changes.
        """
        self.line.send("ask", action, *(self.pack(word) for word in words))
        while True:
            kind, *rest = self.line.receive()
            if kind == "ask":
                self.answer(*rest)
            elif kind == "error":
                raise self._error(*rest)
            else:
                result = self.unpack(rest[0], made)
                for place, after in rest[1]:
                    _replace(words[1][int(place)], self.unpack(after))
                return result

    def answer(self, action: str, *packed: Any) -> None:
        """Perform the other side's request, and send the result or the error."""
        try:
            words = [self.unpack(word) for word in packed]
            if action != "call" and not self.serves:
                raise PermissionError("tests can be called, not looked into")
            before = (
                [self.pack(word) if isinstance(word, _CHANGE) else None for word in words[1]]
                if action == "call"
                else []
            )
            result = self.pack(getattr(self, f"do_{action}")(*words))
            after = [(i, self.pack(words[1][i])) for i, old in enumerate(before) if old is not None]
            self.line.send("reply", result, [pair for pair in after if pair[1] != before[pair[0]]])
        except Ended:
            raise
        except BaseException as error:
            names = [one.__name__ for one in type(error).__mro__ if issubclass(one, BaseException)]
            self.line.send("error", names, text_of(error)[:LONGEST])

    def do_call(self, function: Any, arguments: list[Any], named: dict[str, Any]) -> Any:
        """Call a function or class."""
        return function(*arguments, **named)

    def do_get(self, owner: Any, name: str) -> Any:
        """Read an attribute."""
        return getattr(owner, name)

    def do_set(self, owner: Any, name: str, value: Any) -> None:
        """Write an attribute."""
        setattr(owner, name, value)

    def do_operate(self, owner: Any, name: str, arguments: list[Any]) -> Any:
        """Call a special method, as operators and built-in functions do; also between objects of both sides."""
        import operator

        plain: dict[str, Any] = {
            "__len__": len,
            "__iter__": iter,
            "__next__": next,
            "__str__": str,
            "__repr__": repr,
            "__bool__": bool,
        }
        plain |= {"__float__": float, "__int__": int, "__round__": round, "__abs__": abs}
        return (plain.get(name) or getattr(operator, name))(owner, *arguments)

    def do_isinstance(self, value: Any, kind: Any) -> bool:
        """Return whether an object is an instance of a class."""
        return isinstance(value, kind)

    def _error(self, names: list[str], text: str) -> Exception:
        for name in names:
            kind = self.classes.get(name) or getattr(builtins, name, None)
            if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, Ended | UnicodeError):
                return kind(text)
        return RuntimeError(f"{names[0]}: {text}")


_CHANGE = (list, dict, set)


def _replace(old: Any, new: Any) -> None:
    """Replace the content of a list, set or dictionary by the other side's."""
    if type(old) is not type(new):
        return
    old.clear()
    (old.extend if isinstance(old, list) else old.update)(new)


class Remote:
    """An object of the other side. ``_made``: the tests made it, by calling a class or by operators on such objects."""

    def __init__(self, peer: Peer, number: int, name: str, made: bool, is_class: bool = False, owner: Any = None):
        self.__dict__.update(_peer=peer, _number=number, _name=name, _made=made, _class=is_class, _of=owner)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the function, method or class on its own side."""
        if self._of is not None and any(hasattr(kind, self._name) for kind in _DATA):
            self._must_be_made(f"has no method '{self._name}'", self._of)
        result = self._peer.ask("call", self, list(arguments), named, made=self._class)
        shown = ", ".join([*map(repr, arguments), *(f"{name}={value!r}" for name, value in named.items())])
        self._peer.last = f"{self._name}({shown}) returned {result!r}"[:LONGEST]
        return result

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__name__":
            raise AttributeError(name)
        found = self._peer.ask("get", self, name)
        if isinstance(found, Remote):
            found.__dict__.update(_name=name, _of=self)
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.ask("set", self, name, value)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and self._peer.ask("isinstance", value, self)

    def __eq__(self, other: Any) -> Any:
        return isinstance(other, Remote) and self._peer.ask("operate", self, "__eq__", [other])

    def __hash__(self) -> int:
        return self._number

    def __bool__(self) -> bool:
        return bool(self._operate("__bool__")) if self._made else True

    def _must_be_made(self, what: str, whose: Any = None) -> None:
        if not (whose or self)._made:
            raise TypeError(f"the program returned an object ('{(whose or self)._name}'), which {what}; expected data")

    def _operate(self, name: str, *arguments: Any) -> Any:
        return self._peer.ask("operate", self, name, list(arguments), made=self._made)


def _special(name: str, free: bool) -> Any:
    def method(self: Remote, *arguments: Any) -> Any:
        if not free:
            self._must_be_made(f"has no {name}")
        return self._operate(name, *arguments)

    return method


def _reversed(name: str) -> Any:
    def method(self: Remote, other: Any) -> Any:
        raise TypeError(f"data and an object of the program ('{self._name}') have no {name}")

    return method


for _name in ("len", "iter", "next", "str", "repr", "getitem", "setitem", "delitem"):
    setattr(Remote, f"__{_name}__", _special(f"__{_name}__", free=True))
_ARITHMETIC = (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
)
for _name in (*_ARITHMETIC, "lt", "le", "gt", "ge", "neg", "abs", "invert", "contains", "float", "int", "round"):
    setattr(Remote, f"__{_name}__", _special(f"__{_name}__", free=False))
for _name in _ARITHMETIC:
    setattr(Remote, f"__r{_name}__", _reversed(f"__r{_name}__"))


def text_of(error: BaseException) -> str:
    """Return an error's text; empty where it raises."""
    try:
        return str(error)
    except Exception:
        return ""
