"""Rows rewritten, chosen or extended by a method's hook, before tokenisation."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from posttrain.data import schemas, values
from posttrain.data.rows import Rows
from posttrain.errors import DataError, PluginError, SettingsError

if TYPE_CHECKING:
    from posttrain.catalogue.methods import Method

#: Column with the number of the row that a row is made from.
NUMBER = "row"


def reshape(rows: Rows, method: Method, config: Any) -> Rows:
    """Apply ``posttrain_rows`` to ``rows``, and set the roles of the card.

    Raises SettingsError for streamed rows, PluginError for a row that no longer has its schema, DataError where none is
    left or a role's column is missing.
    """
    if method.has("posttrain_rows"):
        rows = _reshaped(rows, method, config)
    if not method.card.roles:
        return rows
    if not rows.streaming:
        _check_roles(rows, method)
    made = hashlib.sha256(f"{rows.fingerprint} {method.card.roles}".encode()).hexdigest() if rows.fingerprint else ""
    return replace(rows, roles=method.card.roles, fingerprint=made)


def _reshaped(rows: Rows, method: Method, config: Any) -> Rows:
    if rows.streaming:
        raise SettingsError(
            f"'{method.name}' looks at all rows before it learns from one. Leave streaming out; the first N rows alone "
            "are read with --limit N."
        )
    made = method.rows(rows=[{**row, NUMBER: number} for number, row in enumerate(rows)], config=config)
    if not made:
        raise DataError(f"{', '.join(rows.names)}: '{method.name}' leaves none of {len(rows)} rows with these options.")
    plain = [{name: value for name, value in row.items() if name != NUMBER} for row in made]
    _check_schema(plain, rows.schema, method.name)
    chosen = rows.subset([row.get(NUMBER, 0) for row in made])
    chosen._rows = plain
    chosen.fingerprint = hashlib.sha256(json.dumps(plain, sort_keys=True, default=repr).encode()).hexdigest()
    text = f"rows made into {len(plain)} by '{method.name}'"
    return replace(chosen, conversions={**rows.conversions, text: len(rows)})


def _check_schema(rows: list[dict[str, Any]], schema: str, method: str) -> None:
    for number, row in enumerate(rows, 1):
        fit = schemas.fitting(row, (schema,))
        problem = schemas.problem(row, fit[1]) if fit else schemas.missing(row, (schema,))
        if problem:
            raise PluginError(f"Row {number} that posttrain_rows of '{method}' returned: {problem}")


def _check_roles(rows: Rows, method: Method) -> None:
    for origin, row in rows.located():
        for name in method.card.roles:
            problem = values.sample(row[name]) if row.get(name) is not None else "is missing"
            if problem:
                raise DataError(
                    f"{origin}: column '{name}' {problem}. '{method.name}' learns from {', '.join(method.card.roles)}; "
                    f"where the column has another name, add --columns {name}=NAME"
                )
