"""Inside the sandbox: Linux's namespaces, mounts and limits, and the probe that proves them.

Everything that needs ctypes is here. Nothing but the standard library is imported, and nothing here is secret: the
file is mounted into the sandbox. sandbox.py, outside, decides; forkserver.py, inside, calls.
"""
from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import os
import platform
import signal
import socket
import struct
import threading

SCRATCH = "/scratch"

# <linux/sched.h>, <linux/mount.h>, <linux/prctl.h>
CLONE_NEWUSER = 0x10000000
NAMESPACES = CLONE_NEWUSER | 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_PRIVATE = 1, 2, 4, 8, 1 << 12, 1 << 18
AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, SYS_MOUNT_SETATTR = -100, 0x8000, 1, 2, 442
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 22, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 36, 38, 47


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments) -> None:
    """A function of libc's that answers 0; raises OSError, which names it."""
    plain = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    if getattr(_libc(), name)(*plain) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    try:
        _call("mount", source.encode(), target.encode(), kind and kind.encode(), flags, options.encode())
    except OSError as error:
        raise OSError(error.errno, f"mounting {kind or source} on {target}: {os.strerror(error.errno)}") from None


def merge_pages() -> None:
    """Gather this process's memory into pages of 2 MiB: a fork, which copies their table, takes a third of the time."""
    huge, collapse = 2 << 20, 25  # MADV_COLLAPSE, since Linux 6.1; elsewhere refused, and nothing is lost
    with open("/proc/self/maps") as file:
        regions = [fields for fields in map(str.split, file) if fields[1] == "rw-p" and fields[5:] in ([], ["[heap]"])]
    for fields in regions:
        start, end = (int(address, 16) for address in fields[0].split("-"))
        start, end = -(-start // huge) * huge, end // huge * huge
        if start < end:
            _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), collapse)


# ---------------------------------------------------------------- steps, in the order in which they are taken

def die_with_parent() -> None:
    _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def adopt_orphans() -> None:
    """What a submission leaves behind becomes this process's child, and so its to kill."""
    _call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def become(uid: int) -> None:
    """From root, for good, to a user that owns nothing. Mounts /proc before: bubblewrap's own, made by root, has
    covers that forbid every further one."""
    _mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _empty_bounding_set()
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    drop_privileges()
    _call("prctl", PR_SET_DUMPABLE, 1, 0, 0, 0)  # or /proc/self would still belong to root


def unshare() -> None:
    """New namespaces of all kinds; a process forked from here is number 1 in them."""
    uid, gid = os.getuid(), os.getgid()
    _call("unshare", NAMESPACES)
    for file, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{file}", "w") as stream:
            stream.write(text)


def furnish(scratch_bytes: int) -> None:
    """In new namespaces: all read-only but a scratch folder and /dev/shm, an own /proc, a loopback device."""
    attributes = struct.pack("QQQQ", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0, MS_PRIVATE, 0)
    _call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, attributes, len(attributes))
    size = f"size={scratch_bytes},nr_inodes=65536"
    _mount("tmpfs", SCRATCH, "tmpfs", MS_NOSUID | MS_NODEV, f"{size},mode=0700")
    _mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, f"{size},mode=1777")
    _mount("tmpfs", "/dev/pts", "tmpfs", MS_RDONLY, "size=4k")  # terminals would be common to all submissions
    if not os.listdir("/tmp"):  # otherwise the course itself lies there
        _mount(SCRATCH, "/tmp", None, MS_BIND)
    _mount("proc", "/proc", "proc", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP


def confine(gpu: bool) -> None:
    """The last step: no capability, none to be had again, and no system call that leads out or hides memory."""
    _empty_bounding_set()
    drop_privileges()
    instructions = _seccomp_filter(gpu)
    kept = ctypes.create_string_buffer(instructions, len(instructions))
    _call("prctl", PR_SET_SECCOMP, 2, struct.pack("HP", len(instructions) // 8, ctypes.addressof(kept)), 0, 0)


def drop_privileges() -> None:
    _call("prctl", PR_CAP_AMBIENT, 4, 0, 0, 0)
    _call("capset", struct.pack("Ii", 0x20080522, 0), bytes(24))
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _empty_bounding_set() -> None:
    for capability in range(64):
        try:
            _call("prctl", PR_CAPBSET_DROP, capability, 0, 0, 0)
        except OSError:
            break  # past the last one, or not allowed because nothing is left: the probe looks


# ---------------------------------------------------------------- system calls

# Refused, with their numbers on x86-64 and on 64-bit ARM: other processes' memory; keyrings, which outlive a process;
# the kernel's messages; what attacks on kernels begin with; new namespaces.
REFUSED = {"ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
           "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "syslog": (103, 116),
           "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
           "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "unshare": (272, 97), "setns": (308, 268)}
# Memory that belongs to no folder and, once unmapped, to no process: nobody outside could count it. CUDA needs memfd.
UNSEEN = {"memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194)}
CLONE, CLONE3, SOCKET = (56, 220), (435, 435), (41, 198)
FAMILIES = (1, 2, 10, 16)  # unix, inet, inet6, netlink; others (vsock!) do not end at a network namespace
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_*


def _seccomp_filter(gpu: bool) -> bytes:
    """A classic BPF program over struct seccomp_data: number at 0, architecture at 4, first argument at 16."""
    if platform.machine() not in MACHINES:
        raise OSError(errno.ENOSYS, f"no table of system calls for {platform.machine()}")
    column, architecture = MACHINES[platform.machine()]
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill = 0x7FFF0000, 0x80000000
    program = []

    def add(code: int, value: int, skip_if_not: int = 0, skip_if: int = 0) -> None:
        program.append(struct.pack("HBBI", code, skip_if, skip_if_not, value))

    def refuse(code: int) -> None:
        add(give, 0x00050000 | code)

    add(load, 4)
    add(equal, architecture, skip_if=1, skip_if_not=0)
    add(give, kill)  # 32-bit calls have other numbers
    add(load, 0)
    add(at_least, 0x40000000, skip_if_not=1)  # so has the x32 interface
    refuse(errno.ENOSYS)
    for numbers in (REFUSED if gpu else REFUSED | UNSEEN).values():
        add(equal, numbers[column], skip_if_not=1)
        refuse(errno.EPERM)
    add(equal, CLONE3[column], skip_if_not=1)  # its flags cannot be looked at; libc then takes clone
    refuse(errno.ENOSYS)
    add(equal, CLONE[column], skip_if_not=4)
    add(load, 16)
    add(any_bit, CLONE_NEWUSER, skip_if_not=1)
    refuse(errno.EPERM)
    add(give, allow)
    add(equal, SOCKET[column], skip_if_not=2 + len(FAMILIES))
    add(load, 16)
    for place, family in enumerate(FAMILIES):
        add(equal, family, skip_if=len(FAMILIES) - place)
    refuse(errno.EAFNOSUPPORT)
    add(give, allow)
    return b"".join(program)


# ---------------------------------------------------------------- the probe

def probe(expected: dict) -> list[str]:
    """Called as a student's function would be, before any student's: everything that is not as isolation needs it.

    `expected` holds uid, dropped (from root), alone, namespaces, secrets, absent, port, abstract, writable,
    scratch_bytes, processes, environment; see sandbox.py.
    """
    wrong: list[str] = []

    def check(holds: bool, words: str) -> None:
        if not holds:
            wrong.append(words)

    with open("/proc/self/status") as file:
        status = {key: value.split() for key, _, value in (line.partition(":") for line in file)}
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        check(int(status[name][0], 16) == 0, f"capabilities are left ({name} {status[name][0]})")
    check(status["NoNewPrivs"] == ["1"], "programs may still gain privileges")
    check(status["Seccomp"] == ["2"], "system calls are not filtered")
    check(set(status["Uid"]) == {str(expected["uid"])} and expected["uid"] != 0, f"runs as uid {status['Uid']}")
    check(not (expected["dropped"] and status["Groups"]), "groups of the grader's are left")

    for name, theirs in expected["namespaces"].items():
        check(os.readlink(f"/proc/self/ns/{name}") != theirs, f"the {name} namespace is the grader's")
    check(_refused(lambda: _call("unshare", CLONE_NEWUSER)), "a new user namespace was not refused")
    processes = [name for name in os.listdir("/proc") if name.isdigit()]
    check(len(processes) <= (1 if expected["alone"] else 3), f"{len(processes)} processes are visible")
    check(_refused(lambda: os.close(os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY))), "/proc/sys can be written")

    for path in expected["secrets"]:
        check(_refused(lambda: open(path).close()), f"{path} can be read")
    for path in expected["absent"]:
        empty = not (os.path.isdir(path) and os.listdir(path))
        check(empty and _refused(lambda: open(path).close()), f"{path} can be seen")
    with open("/proc/self/mountinfo") as file:
        mounts = [(fields[4], fields[5].split(",")) for fields in map(str.split, file)]
    for place, options in mounts:
        device = place.startswith("/dev/") and not os.path.isdir(place)
        check("ro" in options or place in expected["writable"] or device, f"{place} can be written")
    for place in (SCRATCH, "/dev/shm"):
        room = os.statvfs(place)
        check(room.f_blocks * room.f_frsize <= expected["scratch_bytes"], f"{place} has no limit")
    check(len(os.listdir("/proc/self/fd")) <= 5, "files of the grader's are open")  # 0 to 3, and the folder itself
    with open("/proc/self/environ") as file:  # as the process was given it; libraries add their own
        foreign = {entry.partition("=")[0] for entry in file.read().split("\0") if entry} - set(expected["environment"])
    check(not foreign, f"foreign environment variables: {', '.join(sorted(foreign))}")

    tcp, udp = socket.SOCK_STREAM, socket.SOCK_DGRAM
    for family, kind, address, words in (
            (socket.AF_INET, tcp, ("127.0.0.1", expected["port"]), "the host's loopback was reached"),
            (socket.AF_UNIX, tcp, "\0" + expected["abstract"], "a Unix socket of the host's was reached"),
            (socket.AF_INET, udp, ("192.0.2.1", 9), "there is a route to the outside")):
        check(_refused(lambda: _connect(family, address, kind)), words)
    check(_refused(lambda: socket.socket(40, tcp).close()), "sockets to a virtual machine's host (vsock) are allowed")
    check([name for _, name in socket.if_nameindex()] == ["lo"], "there are network devices besides loopback")
    with socket.create_server(("127.0.0.1", 0)) as server:
        check(not _refused(lambda: _connect(socket.AF_INET, server.getsockname(), tcp)), "the loopback device is down")

    started = _threads_until_refused(expected["processes"] + 10)
    check(0 < started < expected["processes"], f"{started} threads at once: no limit on processes")
    return wrong


def _refused(action) -> bool:
    try:
        action()
    except OSError:
        return True
    return False


def _connect(family: int, address, kind: int) -> None:
    with socket.socket(family, kind) as connection:
        connection.settimeout(2)
        connection.connect(address)


def _threads_until_refused(most: int) -> int:
    """How many threads could be started; to the kernel's limit a thread is a process, and it costs much less."""
    done, started, size = threading.Event(), [], threading.stack_size(1 << 16)
    try:
        for _ in range(most):
            thread = threading.Thread(target=done.wait)
            thread.start()
            started.append(thread)
    except RuntimeError:
        pass
    done.set()
    for thread in started:
        thread.join()
    threading.stack_size(size)
    return len(started)
