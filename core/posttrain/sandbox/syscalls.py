"""Filter of refused system calls of a program in the sandbox, for seccomp, by libseccomp.

Refused are those that reach what no namespace covers (virtual sockets of a hypervisor, the kernel's key rings), those
that keep memory outside of every limit (shared segments, files without a name), and those that kernel exploits have
used and that no plain program needs.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import tempfile

from posttrain.errors import DependencyError

_REFUSED = (
    # memory that no limit counts
    *("memfd_create", "shmget", "shmat", "shmctl", "msgget", "msgsnd", "semget", "mq_open", "vmsplice"),
    # other processes
    *("ptrace", "process_vm_readv", "process_vm_writev", "kcmp"),
    # namespaces and mounts
    *("unshare", "setns", "mount", "umount2", "pivot_root", "chroot"),
    # parts of the kernel
    *("bpf", "perf_event_open", "userfaultfd", "add_key", "request_key", "keyctl", "fanotify_init"),
    *("init_module", "finit_module", "delete_module", "kexec_load", "reboot", "swapon", "swapoff", "syslog", "acct"),
    *("quotactl", "open_by_handle_at", "name_to_handle_at", "personality", "settimeofday", "clock_settime"),
    *("sethostname", "setdomainname", "vhangup", "migrate_pages", "move_pages"),
)
#: Newer than many copies of libseccomp, and with the same number on every machine.
_REFUSED_NUMBERS = {
    **{"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429},
    **{"fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_getfd": 438, "process_madvise": 440},
    **{"mount_setattr": 442, "quotactl_fd": 443, "memfd_secret": 447, "open_tree_attr": 467},
}
_CLONE3 = 435
#: Flags of clone that create namespaces: mount, cgroup, uts, ipc, user, pid, net, time.
_NEW_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000 | 0x80


@functools.cache
def call_filter() -> bytes:
    """Return the compiled filter. Raises DependencyError where Python cannot reach libseccomp, or it lacks a call."""
    try:
        import pyseccomp as seccomp
    except (ImportError, RuntimeError, OSError) as error:
        raise DependencyError(
            f"Refusing calls of the kernel takes pyseccomp and libseccomp, which are not here ({error}). Install them "
            "with: pip install 'posttrain[sandbox]', and apt install libseccomp2"
        ) from None
    made = seccomp.SyscallFilter(seccomp.ALLOW)
    refused, unknown = seccomp.ERRNO(errno.EPERM), seccomp.ERRNO(errno.ENOSYS)
    for name in _REFUSED:
        try:
            made.add_rule(refused, name)
        except OSError as error:
            raise DependencyError(
                f"libseccomp cannot refuse '{name}' ({error}). Install version 2.5 or newer."
            ) from None
    for number in _REFUSED_NUMBERS.values():
        made.add_rule(refused, number)
    made.add_rule(unknown, _CLONE3)  # its flags are in memory, invisible to a filter; libraries then use clone
    for bit in range(32):
        if _NEW_NAMESPACES >> bit & 1:
            made.add_rule(refused, "clone", seccomp.Arg(0, seccomp.MASKED_EQ, 1 << bit, 1 << bit))
    made.add_rule(refused, "socket", seccomp.Arg(0, seccomp.NE, int(socket.AF_UNIX)))
    with tempfile.TemporaryFile() as file:
        made.export_bpf(file)
        size = os.lseek(file.fileno(), 0, os.SEEK_CUR)
        return os.pread(file.fileno(), size, 0)
