"""The rules of a run: the shipped ones, those of other packages, and their options."""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.catalogue.entries import entries, load_entry, one
from posttrain.errors import PluginError, SettingsError, closest
from posttrain.runs.rules import evaluation, machine, optimiser, policy, rewards, sampler, start, texts
from posttrain.runs.rules.rule import Rule

#: In the order of causes: where several raise alerts, fix the first one first.
SHIPPED: tuple[Rule, ...] = (
    *start.RULES,
    *texts.RULES[:1],
    *rewards.RULES,
    *optimiser.RULES,
    *sampler.RULES,
    *policy.RULES,
    *texts.RULES[1:],
    *evaluation.RULES,
    *machine.RULES,
)
#: Alerts that the loop itself raises: what they find cannot be learnt from, so they always end the run.
ALWAYS = {
    "nan-origin": "The loss or the gradient is not a number; module, micro-batch and rows where it began are named.",
    "nonfinite-weights": "Trained weights are not finite; they are not saved.",
}
OFF, WARN, STOP = "off", "warn", "stop"
ALL = "all"


@dataclass(frozen=True)
class ActiveRule:
    """A rule of one run, with its thresholds, and whether it ends the run."""

    rule: Rule
    limits: dict[str, float]
    stops: bool


def active_rules(modes: dict[str, str] | None, options: dict[str, str] | None) -> list[ActiveRule]:
    """Choose rules and thresholds by ``--rules`` and ``--rule-options``. Raises SettingsError for unknown ones.

    All shipped rules are on; those of another package where ``modes`` names their entry point.
    """
    modes, values = dict(modes or {}), _thresholds(options or {})
    for code, mode in modes.items():
        if mode not in (OFF, WARN, STOP):
            raise SettingsError(f"--rules {code}={mode}: expected {code}=off, {code}=warn or {code}=stop.")
    known = {rule.code: rule for rule in SHIPPED}
    for name in [name for name in modes if name not in known and name != ALL]:
        if modes[name] != OFF:
            for rule in _installed(name, known):
                known[rule.code] = rule
                modes.setdefault(rule.code, modes[name])
    for code in (*modes, *values):
        if code not in known and code != ALL and not (code in modes and entries("rule", code)):
            raise SettingsError(_unknown("rule", code, list(known)))
    return [
        ActiveRule(rule, _limits(rule, values.get(code, {})), mode == STOP)
        for code, rule in known.items()
        if (mode := modes.get(code, modes.get(ALL, WARN))) != OFF
    ]


def _limits(rule: Rule, given: dict[str, float]) -> dict[str, float]:
    for name in given:
        if name not in rule.thresholds:
            raise SettingsError(_unknown(f"threshold of rule {rule.code}", name, list(rule.thresholds)))
    return {name: given.get(name, threshold.value) for name, threshold in rule.thresholds.items()}


def _installed(name: str, known: dict[str, Rule]) -> list[Rule]:
    """Load the rules of another package's entry point: a Rule, or a list of them. Raises PluginError."""
    entry = one("rule", name)
    if entry is None:
        raise SettingsError(_unknown("rule", name, [*known, ALL, *(entry.name for entry in entries("rule"))]))
    value = load_entry(entry)
    rules = list(value) if isinstance(value, list | tuple) else [value]
    for rule in rules:
        if not isinstance(rule, Rule):
            raise PluginError(
                f"Rule '{name}' of {entry.package} is of type {type(rule).__name__}, expected "
                "posttrain.runs.rules.rule.Rule, or a list of them."
            )
        if rule.code in known:
            raise PluginError(f"Rule '{rule.code}' of {entry.package} exists already. Give it another code.")
    return rules


def order_of_causes() -> list[str]:
    """List the codes of alerts in the order in which to fix them."""
    return [*ALWAYS, *(rule.code for rule in SHIPPED)]


def _thresholds(options: dict[str, str]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for key, value in options.items():
        code, dot, name = key.partition(".")
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not dot or number != number:
            raise SettingsError(f"--rule-options {key}={value}: expected CODE.THRESHOLD=NUMBER, as no-signal.steps=10.")
        found.setdefault(code, {})[name] = number
    return found


def _unknown(what: str, name: str, known: list[str]) -> str:
    hint = closest(name, known)
    return f"Unknown {what} '{name}'.{hint} There are: {', '.join(sorted(known))}."
