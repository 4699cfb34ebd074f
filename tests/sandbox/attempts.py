"""Attempts to leave the sandbox, each a program. It writes ESCAPED where it succeeds, and TRIED when it is through.

``{...}`` stand for things of the machine outside, which a test makes: a file with a secret, an empty folder, ports and
sockets that somebody listens on, the number of the test's own process.
"""

_BEGIN = """
import ctypes, os, signal, socket, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def reads(path):
    try:
        if open(path, "rb").read(64):
            print("ESCAPED: read", path)
    except OSError:
        pass
def writes(path):
    try:
        open(path, "a").write("planted")
        print("ESCAPED: wrote", path)
    except OSError:
        pass
def connects(family, address, kind=socket.SOCK_STREAM):
    try:
        with socket.socket(family, kind) as one:
            one.settimeout(2)
            one.connect(address)
            one.sendall(b"hello")
            print("ESCAPED: connected", address)
    except OSError:
        pass
def works(call, *arguments):
    if call(*arguments) >= 0:
        print("ESCAPED:", arguments)
"""

#: Name -> program. Outside of the sandbox each of these succeeds: a test runs them there too.
REAL = {
    "read-secret": "reads({secret!r})",
    "read-passwd": "reads('/etc/passwd')",
    "read-by-relative-path": "reads('../' * 20 + {secret!r}[1:])",
    "read-through-symlink": """
link = "link-%d" % os.getpid()
os.symlink({secret!r}, link)
reads(link)
os.unlink(link)""",
    "read-proc-of-parent": "reads('/proc/%d/cmdline' % os.getppid())",
    "read-own-environment-of-the-run": "if os.environ.get('SANDBOX_TEST_SECRET'): print('ESCAPED: variables')",
    "list-folders-of-the-machine": "if os.path.isdir({folder!r}) or os.path.isdir('/var'): print('ESCAPED: sees')",
    "write-outside": "writes({folder!r} + '/planted')",
    "write-through-symlink": """
link = "links-%d" % os.getpid()
os.symlink({folder!r}, link)
writes(link + '/planted')
os.unlink(link)""",
    "hard-link": """
try:
    os.link({secret!r}, {folder!r} + '/hard')
    print('ESCAPED: linked')
except OSError:
    pass""",
    "connect-tcp": "connects(socket.AF_INET, ('127.0.0.1', {port}))",
    "connect-tcp6": "connects(socket.AF_INET6, ('::1', {port6}))",
    "send-udp": "connects(socket.AF_INET, ('127.0.0.1', {port}), socket.SOCK_DGRAM)",
    "connect-socket-file": "connects(socket.AF_UNIX, {socket!r})",
    "connect-abstract-socket": "connects(socket.AF_UNIX, '\\0{abstract}')",
    "routing-socket": "connects(socket.AF_NETLINK, (0, 0), socket.SOCK_RAW)",
    "signal-the-test": """
try:
    os.kill({pid}, 0)
    print('ESCAPED: signalled')
except OSError:
    pass""",
    "anonymous-file": "works(libc.memfd_create, b'x', 0)",
    "shared-segment": """
number = libc.shmget(0, 4096, 0o1666)
if number >= 0:
    print('ESCAPED: shared segment')
    libc.shmctl(number, 0, None)""",
    "new-user-namespace": """
child = os.fork()
if not child:
    os._exit(7 if libc.unshare(0x10000000) == 0 else 0)
if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7:
    print('ESCAPED: a new user namespace')""",
    "trace-a-child": """
child = os.fork()
if not child:
    time.sleep(2)
    os._exit(0)
if libc.ptrace(16, child, 0, 0) == 0:
    print('ESCAPED: traces')
os.kill(child, 9)""",
    "key-ring": "works(libc.syscall, {keyctl}, 0, -4 & 0xFFFFFFFF, 0)",
}

#: Name -> program. These are not run outside: they would harm the machine, or need rights there.
HARMFUL = {
    "read-raw-memory-and-disks": "[reads(path) for path in ('/dev/mem', '/dev/kmsg', '/dev/vda', '/proc/kcore')]",
    "make-a-device": """
try:
    os.mknod('disk', 0o60600, os.makedev(254, 0))
    print('ESCAPED: made a device')
except OSError:
    pass""",
    "change-the-system": "[writes(folder + '/x') for folder in ('/', '/usr', '/usr/bin', '/etc', '/dev', sys.prefix)]",
    "change-the-interpreter": "[writes(path) for path in (sys.executable, os.__file__, subprocess.__file__)]",
    "become-root": """
for call in (os.setuid, os.setgid, os.seteuid):
    try:
        call(0 if os.getuid() else 1)
        print('ESCAPED: another user')
    except OSError:
        pass""",
    "mount": "works(libc.mount, b'none', b'/tmp', b'tmpfs', 0, None)",
    "change-root": "works(libc.chroot, b'/usr')",
    "enter-namespaces": "works(libc.setns, 0, 0)",
    "open-by-handle": "works(libc.syscall, 304, -100, 0, 0)",
    "io-uring": "works(libc.syscall, 425, 1, ctypes.create_string_buffer(512))",
    "virtual-socket-of-the-hypervisor": "connects(40, (2, 22))",
    "raw-packets": "connects(socket.AF_PACKET, ('lo', 0), socket.SOCK_RAW)",
    "programs-of-the-kernel": "works(libc.syscall, 321, 0, 0, 0)",
    "signal-everybody": """
child = os.fork()
if not child:
    os.kill(-1, 9)
    os._exit(0)
time.sleep(0.2)""",
    "signal-the-sandbox": """
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    for process in range(1, 4):
        try:
            if process != os.getpid():
                os.kill(process, number)
        except OSError:
            pass""",
    "memory-of-others": "works(libc.process_vm_readv, 1, None, 0, None, 0, 0)",
    "old-calls-of-32-bits": """
import mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex("b867010000 53 bb02000000 b901000000 31d2 cd80 5b c3".replace(" ", "")))  # socket(AF_INET)
child = os.fork()
if not child:
    call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    os._exit(7 if call() >= 0 else 0)
if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7:
    print('ESCAPED: a call of 32 bits')""",
    "terminal": """
try:
    os.open('/dev/tty', os.O_RDWR)
    print('ESCAPED: a terminal')
except OSError:
    pass""",
    "inherited-files": """
for number in range(3, 256):
    try:
        os.fstat(number)
        print('ESCAPED: inherited', number)
    except OSError:
        pass""",
}

#: Name -> program. What they would take is bounded; how they end is what a test looks at.
GREEDY = {
    "fork-bomb": "while True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
    "thread-bomb": """
import threading
count = 0
try:
    for count in range(5000):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    print('ESCAPED: 5000 threads')
except RuntimeError:
    print('TRIED')
sys.stdout.flush()
os._exit(0)""",
    "memory": "x = []\nwhile True:\n    x.append(bytearray(1 << 24))",
    "memory-at-once": "x = bytearray(1 << 40)",
    "memory-of-children": """
made = 0
for _ in range(100):
    try:
        child = os.fork()
    except OSError:
        break
    if not child:
        x = []
        try:
            while True:
                x.append(bytearray(1 << 24))
        except MemoryError:
            time.sleep(60)
    made += 1
print('ESCAPED: 100 children' if made == 100 else 'TRIED')""",
    "disk": """
try:
    with open('big', 'wb') as file:
        for _ in range(4096):
            file.write(bytes(1 << 20))
    print('ESCAPED: 4 GiB')
except OSError:
    print('TRIED')""",
    "disk-in-many-files": """
try:
    for number in range(4096):
        with open('/dev/shm/%d' % number, 'wb') as file:
            file.write(bytes(1 << 20))
    print('ESCAPED: 4 GiB')
except OSError:
    print('TRIED')""",
    "output": "while True:\n    print('x' * 65536)",
    "error-output": "while True:\n    print('x' * 65536, file=sys.stderr)",
    "endless-loop": "while True:\n    pass",
    "sleeps": "time.sleep(3600)",
    "deaf": "[signal.signal(n, signal.SIG_IGN) for n in (15, 2, 1, 24)]\nwhile True:\n    time.sleep(1)",
    "daemon": """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in (0, 1, 2):
            os.close(number)
        time.sleep(3600)
    os._exit(0)
print('TRIED')""",
    "recursion": "def f():\n    return f() + f()\nimport sys\nsys.setrecursionlimit(1 << 30)\nf()",
    "stack-in-c": "import json\njson.loads('[' * 10**7)",
}


def source(name, program, facts):
    """The whole program of an attempt, with the facts of the machine put in."""
    ends = "" if name in GREEDY else "\nprint('TRIED')\n"
    return _BEGIN + _filled(program, facts) + ends


def _filled(program, facts):
    import string

    fields = [name for _, name, _, _ in string.Formatter().parse(program) if name in facts]
    return program.format(**facts) if fields else program
