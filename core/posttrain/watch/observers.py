"""Observers: plugins that are told what happens in a run and cannot change it."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import pluggy

from posttrain import hookspecs
from posttrain.errors import PluginError

GROUP = "posttrain.observers"


class Observers:
    """Calls the observer hooks of the plugins named in the settings, and of objects handed over in Python."""

    def __init__(self, named: list[Any] | None):
        self.relay = pluggy.PluginManager("posttrain")
        self.relay.add_hookspecs(hookspecs)
        for item in named or []:
            plugin = _load(item) if isinstance(item, str) else item
            try:
                self.relay.register(plugin)
                self.relay.check_pending()
            except pluggy.PluginValidationError as error:
                raise PluginError(
                    f"Observer '{item}' does not fit the hooks: {' '.join(str(error).split())}"
                ) from error

    def tell(self, hook: str, **arguments: Any) -> None:
        """Call ``posttrain_<hook>`` of every observer."""
        getattr(self.relay.hook, f"posttrain_{hook}")(**arguments)


def _load(name: str) -> Any:
    entries = importlib.metadata.entry_points(group=GROUP)
    found = [entry for entry in entries if entry.name == name]
    if not found:
        known = ", ".join(sorted(entry.name for entry in entries)) or "none"
        raise PluginError(f"No observer is called '{name}'. Installed: {known}.")
    if len(found) > 1:
        raise PluginError(f"Observer '{name}' is provided by {len(found)} packages. Uninstall all but one.")
    from posttrain.methods import import_plugin

    module, _, attribute = found[0].value.partition(":")
    plugin = import_plugin(name, module)
    return getattr(plugin, attribute) if attribute else plugin
