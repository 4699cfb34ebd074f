"""``posttrain new``: the folder of a new plugin, which works, has a test and can be published unchanged."""

from __future__ import annotations

from pathlib import Path
from string import Template

from packaging.version import Version

from posttrain import __version__
from posttrain.authoring import render, templates, toml
from posttrain.authoring.losses import LOSSES, MODIFIER
from posttrain.authoring.sync import LICENCE, PYTHON_FLOOR, expected, write
from posttrain.catalogue.cards import NAME
from posttrain.catalogue.catalogue import known
from posttrain.errors import MethodError, SettingsError

KINDS = ("method", "reward", "source", "observer", "environment")
_TEXTS = {
    "reward": (templates.REWARD, templates.REWARD_TEST, "A reward for posttrain: completions of a wanted length."),
    "source": (templates.SOURCE, templates.SOURCE_TEST, "A source of data for posttrain: sums of two numbers."),
    "observer": (templates.OBSERVER, templates.OBSERVER_TEST, "An observer for posttrain: says which loss was lowest."),
    "environment": (
        templates.ENVIRONMENT,
        templates.ENVIRONMENT_TEST,
        "An environment for posttrain: a word to be spelt with a tool.",
    ),
}


def new(
    name: str, kind: str = "method", schema: str = "preference", parent: Path = Path(), modifier: bool = False
) -> Path:
    """Write the folder ``parent/name`` of a plugin and return it. Raises SettingsError, MethodError."""
    if not NAME.fullmatch(name):
        raise SettingsError(f"Name '{name}' is not lower-case words joined by hyphens, such as my-loss.")
    if kind == "method" and name in known():
        raise MethodError(f"A method is called '{name}' already. Choose another name.")
    if kind == "method" and schema not in LOSSES:
        raise SettingsError(f"There is no template for schema '{schema}'. Templates: {', '.join(LOSSES)}")
    folder = parent / name
    if folder.exists():
        raise SettingsError(f"'{folder}' exists already. Choose another name, or remove it.")
    files = _method(name, "prompt" if modifier else schema, modifier) if kind == "method" else _other(name, kind)
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    if kind == "method":
        (folder / "pyproject.toml").write_text('[project]\nreadme = "README.md"\n', encoding="utf-8")
        write(expected(folder))
    return folder


def _facts(name: str, kind: str) -> dict[str, str]:
    version = Version(__version__)
    tail = name.replace("-", "_")
    return {
        "name": name,
        "title": name.replace("-", " ").capitalize(),
        "function": tail,
        "class_name": "".join(word.capitalize() for word in name.split("-")),
        "module": f"posttrain_{kind}_{tail}",
        "distribution": f"posttrain-{kind}-{name}",
        "minor": f"{version.major}.{version.minor}",
        "next_major": str(version.major + 1),
    }


def _fill(text: str, facts: dict[str, str]) -> str:
    return Template(text).substitute(facts)


def _method(name: str, schema: str, modifier: bool) -> dict[str, str]:
    loss = MODIFIER if modifier else LOSSES[schema]
    data = "prompts.jsonl --reward math" if schema == "prompt" else "data.jsonl"
    facts = _facts(name, "method") | {
        "schema": schema,
        "summary": "A new modifier of online methods." if modifier else f"A new method that trains on {schema} data.",
        "usage": f"posttrain train {name} --model MODEL --data {data}",
        "develop": f"posttrain train . --model MODEL --data {data}\nposttrain check .\nposttrain sync .",
        "check": "posttrain check .",
        **{key: getattr(loss, key) for key in ("words", "metrics", "options", "hooks", "imports", "needs")},
        "test": loss.test,
    }
    module = facts["module"]
    return {
        f"{module}/method.toml": _fill(templates.CARD, facts),
        f"{module}/__init__.py": _fill(templates.METHOD, facts),
        f"test_{facts['function']}.py": _fill(templates.METHOD_TEST, facts),
        **_common(facts),
    }


def _other(name: str, kind: str) -> dict[str, str]:
    module_text, test_text, summary = _TEXTS[kind]
    usage = {
        "reward": f"posttrain train grpo --model MODEL --data prompts.jsonl --reward {name}",
        "source": f"posttrain train grpo --model MODEL --data {name}:100 --reward math",
        "observer": f"posttrain train sft --model MODEL --data data.jsonl --observers {name}",
        "environment": f"posttrain train grpo --model MODEL --environment {name}",
    }[kind]
    facts = _facts(name, kind) | {
        "summary": summary,
        "usage": usage,
        "develop": "pip install -e .",
        "check": f"posttrain check-environment {name}" if kind == "environment" else "posttrain plugins",
    }
    module = facts["module"]
    value = module if kind == "observer" else f"{module}:{facts['class_name' if kind == 'environment' else 'function']}"
    project = {
        "build-system": {"requires": ["hatchling>=1.24"], "build-backend": "hatchling.build"},
        "project": {
            "name": facts["distribution"],
            "version": "0.1.0",
            "description": summary,
            "readme": "README.md",
            "license": LICENCE,
            "requires-python": PYTHON_FLOOR,
            "dependencies": [f"posttrain>={facts['minor']},<{facts['next_major']}"],
            "classifiers": [f"Development Status :: {render.STATUS['experimental']}"],
            "entry-points": {f"posttrain.{kind}s": {name: value}},
        },
    }
    return {
        f"{module}/__init__.py": _fill(module_text, facts),
        f"test_{facts['function']}.py": _fill(test_text, facts),
        "pyproject.toml": toml.dumps(project),
        **_common(facts),
    }


def _common(facts: dict[str, str]) -> dict[str, str]:
    return {
        "README.md": _fill(templates.README, facts),
        ".gitignore": templates.IGNORE,
        ".github/workflows/publish.yml": _fill(templates.WORKFLOW, facts),
    }
