"""Observers: plugins that get a run's events and cannot change the run."""

from __future__ import annotations

from typing import Any

import pluggy

from posttrain.catalogue.entries import entries, load_entry, one
from posttrain.contract import hookspecs
from posttrain.errors import PluginError


class Observers:
    """Calls the observer hooks of the plugins named in the settings, and of objects passed in Python."""

    def __init__(self, named: list[Any] | None):
        self.relay = pluggy.PluginManager("posttrain")
        self.relay.add_hookspecs(hookspecs)
        for item in named or []:
            plugin = load_observer(item) if isinstance(item, str) else item
            try:
                self.relay.register(plugin)
                self.relay.check_pending()
            except pluggy.PluginValidationError as error:
                raise PluginError(
                    f"Observer '{item}' does not fit the hooks: {' '.join(str(error).split())}"
                ) from error

    def add(self, observer: Any) -> None:
        """Register one more object, made by posttrain itself."""
        self.relay.register(observer)

    def tell(self, hook: str, **arguments: Any) -> None:
        """Call ``posttrain_<hook>`` of every observer."""
        getattr(self.relay.hook, f"posttrain_{hook}")(**arguments)


def load_observer(name: str) -> Any:
    """Load the installed observer of that name. Raises PluginError, and SettingsError where it may not be loaded."""
    entry = one("observer", name)
    if entry is None:
        known = ", ".join(sorted(entry.name for entry in entries("observer"))) or "none"
        raise PluginError(f"No observer is called '{name}'. Installed: {known}.")
    return load_entry(entry)
