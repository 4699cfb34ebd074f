"""Cards: the facts of a method in its ``method.toml``, read without importing the method."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.errors import CardError

TIERS = ("stable", "experimental", "retired")
#: Schemas of offline methods, then that of online methods.
SCHEMAS = (
    "language-modeling",
    "prompt-completion",
    "preference",
    "unpaired-preference",
    "ranked",
    "scored",
    "stepwise",
    "forget-retain",
    "trajectory",
    "prompt",
)
#: Needs of a method. "X when OPTION" needs X only while the method's option is not 0, None or False. Heads replace the
#: vocabulary projection: one score per row, or one per step. "preferences" are a judge or rewards.
NEEDS = ("reference", "teacher", "reward-head", "step-head", "rewards", "preferences", "generation")
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_REQUIRED: dict[str, Any] = {
    "name": str,
    "version": str,
    "tier": str,
    "summary": str,
    "schema": (str, list),
    "requires": list,
}
_OPTIONAL = {
    "needs": list,
    "columns": list,
    "roles": list,
    "paper": str,
    "family": str,
    "waivers": dict,
    "defaults": dict,
    "follows": dict,
    "goldens": dict,
    "pairs": bool,
    "modifier": bool,
    "alone": list,
    "token_advantages": bool,
    "ranges": dict,
}


@dataclass(frozen=True)
class Card:
    """Facts of a method. ``path`` is the card's file, None for one from the catalogue only."""

    name: str
    version: str
    tier: str
    summary: str
    schemas: tuple[str, ...]
    """Data schemas that it can train on, the preferred one first."""
    needs: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    """Columns that the rows must have besides the schema's; "X when OPTION" as in ``needs``."""
    roles: tuple[str, ...] = ()
    """For forget-retain and preference rows: the columns whose samples the loss sees, by role; if empty the two in the
    schema's name."""
    paper: str = ""
    family: str = ""
    pairs: bool = False
    """Online: whether the loss gets pairs of answers (roles chosen and rejected), made by posttrain_select."""
    modifier: bool = False
    """Online: whether it can also change another method (``train METHOD --modifier NAME``)."""
    alone: tuple[str, ...] = ()
    """Options of a modifier that only apply when it is trained by itself."""
    token_advantages: bool = True
    """Online: whether the loss takes an advantage per token; False if per completion."""
    requires: tuple[str, ...] = ()
    waivers: dict[str, str] = field(default_factory=dict)
    """Conformance check -> why the paper rules it out."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Shared options with another default for this method."""
    follows: dict[str, str] = field(default_factory=dict)
    """Option of the method -> shared option that it defaults to."""
    goldens: dict[str, Any] = field(default_factory=dict)
    """Name in a file of golden values -> method's option or quantity; ``entries``: see
    ``posttrain_testkit.goldens.compare``."""
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Metric -> its lowest and highest usual value; a run warns outside of them."""
    path: Path | None = None

    @property
    def online(self) -> bool:
        """Whether the method generates while it trains."""
        return self.schemas[0] == "prompt"

    @property
    def module(self) -> str:
        """Import name of the method's package."""
        return "posttrain_method_" + self.name.replace("-", "_")

    @property
    def distribution(self) -> str:
        """Name of the method's package in a package index."""
        return "posttrain-method-" + self.name

    def needs_now(self, what: str, config: object) -> bool:
        """Return whether ``what`` is needed with these option values ("reference when beta")."""
        return what in _now(self.needs, config)

    def imitates(self, config: object) -> bool:
        """Return whether the loss imitates given texts and compares the policy with nothing."""
        alone = not any(self.needs_now(what, config) for what in ("reference", "teacher"))
        return alone and self.schemas[0] in ("language-modeling", "prompt-completion")

    def needs_all(self, config: object) -> list[str]:
        """Return everything that is needed with these option values."""
        return _now(self.needs, config)

    def columns_now(self, config: object) -> list[str]:
        """Return the columns that the rows must have with these option values."""
        return _now(self.columns, config)


def _now(needs: tuple[str, ...], config: object) -> list[str]:
    """Return the names whose option, if they depend on one, is set."""
    split = [need.partition(" when ") for need in needs]
    return [name for name, _, option in split if not option or getattr(config, option)]


def read_card(path: Path) -> Card:
    """Read and check one ``method.toml``. Raises CardError with file, key, value and what was expected."""
    try:
        facts = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CardError(f"{path}: cannot be read ({error.strerror}).") from None
    except ValueError as error:  # syntax, encoding, or a number
        raise CardError(f"{path}: is not valid TOML: {error}.") from None
    except RecursionError:
        raise CardError(f"{path}: is not a card: its values are nested too deep.") from None
    return _card(facts, path)


def _card(facts: dict[str, Any], path: Path) -> Card:
    for key, kind in _REQUIRED.items():
        if key not in facts:
            raise CardError(f"{path}: '{key}' is missing. A card needs {', '.join(_REQUIRED)}.")
        if not isinstance(facts[key], kind):
            raise CardError(
                f"{path}: '{key}' is {facts[key]!r}, which is not a {'string' if kind is str else 'list of strings'}."
            )
    for key, value in facts.items():
        if key not in _REQUIRED and key not in _OPTIONAL:
            raise CardError(f"{path}: unknown key '{key}'. A card has {', '.join([*_REQUIRED, *_OPTIONAL])}.")
        if key in _OPTIONAL and not isinstance(value, _OPTIONAL[key]):
            raise CardError(f"{path}: '{key}' is {value!r}, expected a {_OPTIONAL[key].__name__}.")
    schemas = (facts["schema"],) if isinstance(facts["schema"], str) else tuple(facts["schema"])
    if not NAME.fullmatch(facts["name"]):
        raise CardError(f"{path}: name {facts['name']!r} is not lower-case words joined by hyphens.")
    if len(facts["summary"].splitlines()) > 1:
        raise CardError(f"{path}: summary has {len(facts['summary'].splitlines())} lines, expected one.")
    if facts["tier"] not in TIERS:
        raise CardError(f"{path}: tier {facts['tier']!r} is unknown. Tiers: {', '.join(TIERS)}.")
    for schema in schemas or ("",):
        if schema not in SCHEMAS:
            raise CardError(f"{path}: schema {schema!r} is unknown. Schemas: {', '.join(SCHEMAS)}.")
    for need in facts.get("needs", []):
        if str(need).partition(" when ")[0] not in NEEDS:
            raise CardError(
                f"{path}: need {need!r} is unknown. Needs: {', '.join(NEEDS)}, each with an optional 'when OPTION'."
            )
    if facts.get("roles") and not {"forget-retain", "preference"} & set(schemas):
        raise CardError(
            f"{path}: roles is {facts['roles']!r}, which only methods on forget-retain or preference rows choose."
        )
    _check_modifier(facts, schemas, path)
    if facts["tier"] == "stable" and facts.get("waivers"):
        raise CardError(f"{path}: a stable method has no waivers, this one has {', '.join(facts['waivers'])}.")
    return Card(
        name=facts["name"],
        version=facts["version"],
        tier=facts["tier"],
        summary=facts["summary"],
        schemas=schemas,
        needs=tuple(facts.get("needs", ())),
        columns=tuple(facts.get("columns", ())),
        roles=tuple(facts.get("roles", ())),
        paper=facts.get("paper", ""),
        family=facts.get("family", ""),
        pairs=facts.get("pairs", False),
        modifier=facts.get("modifier", False),
        alone=tuple(facts.get("alone", ())),
        token_advantages=facts.get("token_advantages", True),
        requires=tuple(facts["requires"]),
        waivers=facts.get("waivers", {}),
        defaults=facts.get("defaults", {}),
        follows=facts.get("follows", {}),
        goldens=facts.get("goldens", {}),
        ranges=_ranges(facts.get("ranges", {}), path),
        path=path,
    )


def _ranges(given: dict[str, Any], path: Path) -> dict[str, tuple[float, float]]:
    """Parse ranges of metrics as pairs of numbers, the lower one first."""
    for name, pair in given.items():
        numbers = isinstance(pair, list) and len(pair) == 2 and all(type(end) in (int, float) for end in pair)
        if not numbers or not pair[0] <= pair[1]:
            raise CardError(f"{path}: ranges.{name} is {pair!r}, expected [lowest, highest].")
    return {name: (float(low), float(high)) for name, (low, high) in given.items()}


def _check_modifier(facts: dict[str, Any], schemas: tuple[str, ...], path: Path) -> None:
    """Check that only online methods with advantages are modifiers, and that only modifiers have ``alone``."""
    if facts.get("modifier") and (schemas[0] != "prompt" or facts.get("pairs")):
        raise CardError(f"{path}: modifier is true, which needs schema 'prompt' and no pairs.")
    if facts.get("alone") and not facts.get("modifier"):
        raise CardError(f"{path}: alone is {facts['alone']!r}, which only a card with modifier = true has.")
