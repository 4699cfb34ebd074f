"""``posttrain check --goldens FILE``: compare installed methods with losses, advantages and gradients worked elsewhere.

A file is a JSON object of entries by name. An entry has ``inputs`` (or ``input``, the name of a set under ``_shared``),
``hyperparameters``, ``loss``, and where they make sense ``advantages`` and ``grad_<input>``, the gradient of the loss
by that input. The entry is evaluated by the method of its name, or by the one whose card claims it:

    [goldens]
    lam = "anchor_weight"            # a hyper-parameter that is an option under another name; "1/eta": its inverse
    rewards_override = "@rewards"    # one that is really an input, and takes its place
    columns = { source = ["teacher"] } # columns of the batch that the file describes in words only
    std = "=sample"                  # one that is no option: the method has this value and no other ("=" is any value)
    loss = "loss_trl"                # the quantity of the file that the method's loss is
    advantages = "advantage"         # the metric of the loss that is the file's advantages, where no hook gives them;
                                     # "=": what the file has there is something else
    [goldens.entries]
    rm-bt-margin = {}                # this entry too belongs to this method; "awr@scored": only one of that schema
    "sft:sequence_mean_reduction" = { aggregation = "sequence" }  # another quantity of an entry, under these options

Two keys of an entry are for tests alone (``faults``): ``not_compared`` lists the quantities that no installed method
computes, and ``"implemented": false`` marks an entry that no method answers yet.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from posttrain.catalogue.cards import Card
from posttrain.catalogue.discovery import find_folder, installed
from posttrain.catalogue.methods import Method, load
from posttrain.contract.views import Batch, PerToken
from posttrain.errors import DataError, MethodError, SettingsError
from torch import Tensor

from posttrain_testkit.goldens.annotations import annotated_columns
from posttrain_testkit.goldens.inputs import Inputs, columns_of
from posttrain_testkit.goldens.rollouts import rollout_columns, rollouts_of
from posttrain_testkit.goldens.selection import kept_rows, paired, pairing
from posttrain_testkit.numbers import NotImplementedHere, inputs_of, loss_on

#: The one hyper-parameter that is a setting of every run.
TEMPERATURE = "temperature"
#: Tolerance for files with six decimals.
TOLERANCE = 2e-6
EQUAL, DIFFERS, MISSING = "equal", "differs", "not implemented"
_FACTS = {
    *("family", "schema", "confidence", "inputs", "input", "hyperparameters", "extra_checks", "note"),
    *("implemented", "not_compared"),
}


@dataclass
class Comparison:
    """One quantity of an entry. Of a list the two numbers that differ most; ``note`` where the shapes do."""

    quantity: str
    status: str
    expected: float | None = None
    found: float | None = None
    note: str = ""


@dataclass
class Result:
    """One entry, or one extra quantity of it: equal, differs, or not implemented and why."""

    entry: str
    method: str | None
    status: str
    reason: str = ""
    comparisons: list[Comparison] = field(default_factory=list)
    not_compared: list[str] = field(default_factory=list)

    def line(self) -> str:
        """Format the result in one line, with both numbers where they differ."""
        parts = [self.reason] if self.reason else []
        for one in self.comparisons:
            if one.status == EQUAL:
                parts.append(f"{one.quantity} {_number(one.expected)}")
            else:
                numbers = f"expected {_number(one.expected)}, found {_number(one.found)}"
                parts.append(f"{one.quantity}: {one.note or numbers}")
        if self.not_compared:
            parts.append(f"(not compared: {', '.join(self.not_compared)})")
        return f"{self.entry:32} {self.status:15} {'; '.join(parts)}".rstrip()


def run(file: str, only: str | None = None, json_output: bool = False, folders: Iterable[str] = ()) -> int:
    """Print a report of every entry. Return 0, or 1 where a number differs or the named one is not implemented.

    ``folders`` are plugins that need not be installed; they precede installed ones of the same name.
    """
    results = evaluate(file, only, folders)
    counts = {status: sum(one.status == status for one in results) for status in (EQUAL, DIFFERS, MISSING)}
    if json_output:
        print(json.dumps({"file": str(file), "summary": counts, "results": [_row(one) for one in results]}, indent=1))
    else:
        for one in results:
            print(one.line())
        print(", ".join(f"{count} {status}" for status, count in counts.items()))
    return 1 if counts[DIFFERS] or (only and counts[MISSING]) else 0


def evaluate(file: str | Path, only: str | None = None, folders: Iterable[str] = ()) -> list[Result]:
    """Return the results of the file's entries, in order. Raises DataError for a file that is not of this kind."""
    entries = _read(Path(file))
    names = [name for name in entries if not name.startswith("_")]
    if only is not None and only not in names:
        raise SettingsError(f"{file} has no entry '{only}'. It has: {', '.join(names)}")
    places = _places(folders)
    owners = _owners(card for card, _ in places.values())
    results = []
    for name in [only] if only is not None else names:
        owner = owners.get(name)
        if owner is None:
            results.append(Result(name, None, MISSING, f"no installed method is called '{name}' or claims it"))
            continue
        result = _evaluate(entries, name, None, places[owner[0]][1], owner[1])
        results.append(result)
        for claim, (method, options) in owners.items():
            entry, _, quantity = claim.partition(":")
            if quantity and entry == name and _quantity(entries[name], quantity) is not None:
                results.append(_evaluate(entries, name, quantity, places[method][1], options))
                result.not_compared = [one for one in result.not_compared if one != quantity]
    return results


def entries_of(file: str | Path, folder: str) -> list[str]:
    """Return the names of the entries of the method in ``folder``, by name or claim. Raises DataError."""
    card = find_folder(folder).card
    claims = {claim.partition(":")[0].partition("@")[0] for claim in card.goldens.get("entries", {})} if card else set()
    return [name for name in _read(Path(file)) if card and name in {card.name, *claims}]


def faults(file: str | Path, name: str, folder: str) -> list[str]:
    """Return the faults of entry ``name`` under the method in ``folder``, a sentence each; none if every number agrees.

    A quantity without a comparison is a fault too, unless the entry lists it.
    """
    entry = _read(Path(file))[name]
    results = evaluate(file, name, [folder])
    found = [one.line() for one in results if one.status != EQUAL]
    if not entry.get("implemented", True):
        found.append(f"'{name}' is marked as not implemented, and a method answers it. Remove \"implemented\".")
    listed, left = set(entry.get("not_compared", [])), set(results[0].not_compared)
    if left - listed:
        found.append(f"nothing is compared with {', '.join(sorted(left - listed))}. If so, list it under not_compared.")
    if listed - left:
        found.append(f"{', '.join(sorted(listed - left))} is compared. Remove it from not_compared.")
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}).") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: is not valid JSON: {error}.") from None
    if not isinstance(entries, dict):
        raise DataError(f"{file}: holds a {type(entries).__name__}, expected an object of entries by name.")
    shared = entries.get("_shared", {})
    for name, entry in entries.items():
        if name.startswith("_"):
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("inputs", {}), dict):
            raise DataError(f"{file}: entry '{name}' is not an object with 'inputs'.")
        if "input" in entry and entry["input"] not in shared:
            raise DataError(
                f"{file}: entry '{name}' has input '{entry['input']}', which is not under _shared. "
                f"There: {', '.join(shared) or 'nothing'}."
            )
    return entries


def _places(folders: Iterable[str]) -> dict[str, tuple[Card, str]]:
    """Return card and ``load``'s argument by method name."""
    rows = [(row, row.name) for row in installed()]
    rows += [(row, str(row.folder)) for row in map(find_folder, folders)]
    return {row.name: (row.card, place) for row, place in rows if row.card is not None and row.problem is None}


def _owners(cards: Iterable[Card]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Map an entry, or "entry:quantity", to the method that answers it and the options that it sets."""
    cards = list(cards)
    owners: dict[str, tuple[str, dict[str, Any]]] = {}
    for card in cards:
        for claim, options in dict(card.goldens.get("entries", {})).items():
            if claim in owners:
                raise MethodError(f"Golden entry '{claim}' is claimed by '{owners[claim][0]}' and by '{card.name}'.")
            owners[claim] = (card.name, options)
    # a method of the entry's own name precedes one that covers it with an option
    own = {card.name: dict(card.goldens.get("entries", {}).get(card.name, {})) for card in cards}
    return owners | {name: (name, options) for name, options in own.items()}


def _evaluate(entries: dict[str, Any], name: str, quantity: str | None, place: str, extra: dict[str, Any]) -> Result:
    result = Result(f"{name}:{quantity}" if quantity else name, place, EQUAL)
    entry = entries[name]
    try:
        method = load(place)
        result.method = method.name
        extra = extra | method.card.goldens.get("entries", {}).get(f"{name}@{entry.get('schema')}", {})
        config = method.config(_options(method, entry, entries.get("_meta", {})) | extra)
        raw = {**entries.get("_shared", {}).get(entry.get("input"), {}), **entry.get("inputs", {})}
        given = [(str(method.card.goldens.get(key)), one) for key, one in entry.get("hyperparameters", {}).items()]
        raw |= {target: value for target, value in given if target.startswith("@")}
        inputs = inputs_of(method, config, raw, _temperature(method, entry))
        _compare(result, method, config, entry, inputs, quantity)
    except (NotImplementedHere, SettingsError) as error:
        result.status, result.reason = MISSING, str(error)
    except Exception as error:  # a plugin's error is this entry's result, and the others are still evaluated
        result.status, result.reason = DIFFERS, f"raised {type(error).__name__}: {' '.join(str(error).split())}"
    return result


def _options(method: Method, entry: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
    """Return hyper-parameters as the method's options. Those of the whole file count where the card maps them."""
    names, mapping = {one.name for one in fields(method.Config)}, method.card.goldens
    options = {mapping[key]: value for key, value in meta.items() if mapping.get(key) in names}
    for key, value in entry.get("hyperparameters", {}).items():
        target = mapping.get(key, key)
        if target == TEMPERATURE and TEMPERATURE not in names:
            continue  # a setting of every run: it divides all logits
        if target.startswith("@"):
            continue  # an input
        if target.startswith("="):
            if target[1:] not in ("", str(value), json.dumps(value)):
                raise NotImplementedHere(f"'{key}' is {value!r}, '{method.name}' knows only {target[1:]!r}")
        elif target in names:
            options[target] = value
        elif target.removeprefix("1/") in names:
            options[target.removeprefix("1/")] = 1 / value
        else:
            raise NotImplementedHere(
                f"hyper-parameter '{key}' is no option of '{method.name}'; map it in the card under [goldens]"
            )
    return options


def _temperature(method: Method, entry: dict[str, Any]) -> float:
    """Return the divisor of the entry's logits before the method sees them: 1 where the method applies it itself."""
    if TEMPERATURE in {one.name for one in fields(method.Config)} or TEMPERATURE in method.card.goldens:
        return 1.0
    return float(entry.get("hyperparameters", {}).get(TEMPERATURE, 1.0))


def _compare(
    result: Result, method: Method, config: Any, entry: dict[str, Any], inputs: Inputs, quantity: str | None
) -> None:
    if not method.has("posttrain_loss"):
        raise NotImplementedHere(f"'{method.name}' has no posttrain_loss")
    chosen = kept_rows(method, config, inputs := paired(method, inputs), entry)
    if chosen is not None:
        told = [key for key in ("selected", "kept") if key in entry and quantity is None]
        result.comparisons += [_pair(key, entry[key], chosen[2]) for key in told]
        inputs, entry, _ = chosen
    done = {one.quantity for one in result.comparisons}
    known = (rollout_columns(inputs) if method.card.online else {}) | columns_of(inputs)
    batch = Batch(inputs.size, known | method.card.goldens.get("columns", {}))
    advantages = _advantages(method, config, inputs, batch, entry)
    batch.columns = annotated_columns(method, config, inputs, batch.columns) | batch.columns
    loss, metrics = loss_on(method, config, inputs, batch)
    where = method.card.goldens.get("advantages", "")
    named = metrics.get(where, advantages)  # some are computed in the loss
    advantages = named.values if isinstance(named, PerToken) else named
    target = quantity or method.card.goldens.get("loss", "loss")
    expected = _quantity(entry, target)
    done.add(target)
    if expected is not None:
        value = loss if advantages is None or not isinstance(expected, list) else advantages  # a list: the latter
        result.comparisons.append(_pair(target, expected, value))
    if quantity is None:
        if advantages is not None and where != "=" and entry.get("advantages") is not None:
            wanted = entry["advantages"]
            if advantages.dim() == 1 and isinstance(wanted[0], list):  # one for all tokens of a row
                advantages = advantages[:, None].expand(-1, max(map(len, wanted)))
            result.comparisons.append(_pair("advantages", wanted, advantages))
            done.add("advantages")
        for key in [key for key in entry if key in batch.columns and key not in (*inputs.others, *done, "advantages")]:
            result.comparisons.append(_pair(key, entry[key], batch.columns[key]))
            done.add(key)
        for key in [key for key in entry if key.startswith("grad_") and target == "loss"]:
            leaf = _leaf(inputs, key.removeprefix("grad_"))
            if leaf is not None and loss.requires_grad:
                gradient = torch.autograd.grad(loss, leaf, retain_graph=True, allow_unused=True)[0]
                result.comparisons.append(
                    _pair(key, entry[key], torch.zeros_like(leaf) if gradient is None else gradient)
                )
                done.add(key)
        others = [key for key in entry if key not in _FACTS and entry[key] is not None]
        result.not_compared = [key for key in [*others, *entry.get("extra_checks", {})] if key not in done]
    if not result.comparisons:
        raise NotImplementedHere(f"the entry has no number under '{target}' to compare with")
    result.status = DIFFERS if any(one.status == DIFFERS for one in result.comparisons) else EQUAL


def _advantages(method: Method, config: Any, inputs: Inputs, batch: Batch, entry: dict[str, Any]) -> Tensor | None:
    """Call the hook and put its result, and the old log-probs, where the loss looks for them."""
    if method.card.pairs:
        return pairing(method, config, inputs, batch)
    rollouts = rollouts_of(inputs)
    if rollouts is None:
        return None
    batch.columns["old_logps"] = rollouts.old_logps
    if not method.has("posttrain_advantages"):
        return None
    rewards = torch.tensor(inputs.others["rewards"], dtype=torch.float64)  # (B,)
    state = {
        name: dict.fromkeys(rollouts.prompts, value) if isinstance(value, dict) else value
        for name, value in inputs.others.items()
    }  # an object has the facts of each prompt
    advantages, columns = method.advantages_and_columns(rewards=rewards, rollouts=rollouts, config=config, state=state)
    batch.columns |= {"advantages": advantages, **columns}
    return torch.where(rollouts.mask, advantages, 0.0) if advantages.dim() == 2 else advantages


def _quantity(entry: dict[str, Any], name: str) -> Any:
    """Return a quantity of the entry or of its ``extra_checks``; None where it has none of that name."""
    return entry.get(name, entry.get("extra_checks", {}).get(name))


def _leaf(inputs: Inputs, name: str) -> Tensor | None:
    """Return the input of that name; ``seq_logps`` is the policy's log-probs."""
    leaf = inputs.leaves.get("logp_new" if name == "seq_logps" else name)
    return leaf if leaf is not None and leaf.requires_grad else None


def _pair(quantity: str, expected: Any, found: Tensor) -> Comparison:
    """Compare number by number."""
    wanted, numbers = _flat(expected), _trimmed(expected, found.detach())
    if len(wanted) != len(numbers):
        return Comparison(quantity, DIFFERS, note=f"expected {len(wanted)} numbers, found {len(numbers)}")
    pairs = zip(wanted, numbers, strict=True)
    one, other = max(pairs, key=lambda pair: _gap(*pair))
    return Comparison(quantity, EQUAL if _gap(one, other) <= TOLERANCE * max(1.0, abs(one)) else DIFFERS, one, other)


def _gap(one: float, other: float) -> float:
    return abs(one - other) if one == one and other == other else float("inf")


def _flat(value: Any) -> list[float]:
    return [number for one in value for number in _flat(one)] if isinstance(value, list) else [float(value)]


def _trimmed(expected: Any, found: Tensor) -> list[float]:
    """Return the numbers of ``found`` without padding, which is everything beyond the rows of ``expected``."""
    if isinstance(expected, list) and found.dim():
        if len(expected) > len(found):
            return []
        return [number for one, row in zip(expected, found, strict=False) for number in _trimmed(one, row)]
    return found.reshape(-1).tolist()


def _row(result: Result) -> dict[str, Any]:
    row = asdict(result)
    for one in row["comparisons"]:
        if one["found"] is not None and not math.isfinite(one["found"]):
            one["found"] = str(one["found"])  # JSON has no nan
    return row


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.6f}"
