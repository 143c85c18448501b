"""bubblewrap: what a submission sees of this machine, and why there may be no isolation here."""
from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from contextlib import suppress
from glob import glob
from pathlib import Path

from autograder.isolate import SCRATCH

ROOT = Path(__file__).resolve().parent.parent
HOME = Path(os.path.expanduser("~")).absolute()
INSIDE = ("__init__.py", "protocol.py", "worker.py", "forkserver.py", "isolate.py")  # nothing that judges
UID = 1_900_000_000     # above the ranges that systems give to users, services and containers
SCRATCH_BYTES = 512 << 20


def can_become_anyone() -> bool:
    """True for a root whose user namespace knows our uids; a container's root may be an ordinary user outside."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    ranges = [list(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return any(start <= UID and UID + (1 << 26) <= start + length for start, _, length in ranges)


def environment(scratch: str, gpu: bool) -> dict[str, str]:
    """All environment variables of a submission."""
    path, packages = [str(ROOT)], torch_folder()
    if not any(packages.is_relative_to(prefix) for prefix in (sys.prefix, sys.base_prefix)):
        path.append(str(packages))
    variables = {
        "PATH": f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin", "HOME": scratch, "TMPDIR": scratch, "LANG": "C.UTF-8",
        "USER": "student", "LOGNAME": "student", "MPLBACKEND": "agg", "MPLCONFIGDIR": scratch,
        "PYTHONPATH": os.pathsep.join(path), "PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TRAINFAST_JUDGED": "1"}
    if gpu:
        # The fork server must not touch CUDA, or its children could not; this makes torch ask the driver's library.
        variables |= {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    else:
        variables |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}
    wanted = ("LD_LIBRARY_PATH", *(("CUDA_HOME", "CUDA_VISIBLE_DEVICES") if gpu else ()))
    return variables | {name: os.environ[name] for name in wanted if name in os.environ}


def torch_folder() -> Path:
    """Where packages are installed: below sys.prefix, or after pip install --user in the home directory."""
    return Path(importlib.util.find_spec("torch").origin).parent.parent


def command(mode: str, uid: int, drops: bool, gpu: bool, labs: Path, folder: Path) -> list[str]:
    """bubblewrap's command line: what of this machine is visible inside.

    `places` holds what makes each place. Parents come first, so that of two places the deeper one wins.
    """
    places: dict[Path, list[str]] = {}

    def show(path: Path, kind: str = "--ro-bind") -> None:
        if os.path.exists(path):
            places[path] = [kind, os.path.realpath(path), str(path)]

    def shown(path: Path) -> bool:
        return any(places.get(parent, [""])[0] == "--ro-bind" for parent in path.parents)

    def cover(path: Path, *options: str) -> None:
        places[path] = [*options, "--perms", "1777", "--tmpfs", str(path)]

    for path in map(Path, ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store")):
        if path.is_symlink():
            places[path] = ["--symlink", os.readlink(path), str(path)]
        else:
            show(path)
    for name in ("etc/ld.so.cache", "etc/ld.so.conf", "etc/ld.so.conf.d", "etc/alternatives", "etc/localtime",
                 "sys" if gpu else "sys/devices/system"):
        show(Path("/") / name)
    for name, text in {"passwd": f"student:x:{uid}:{uid}::{SCRATCH}:/bin/sh\n", "nsswitch.conf": "hosts: files\n",
                       "hosts": "127.0.0.1 localhost\n::1 localhost\n"}.items():
        (folder / name).write_text(text)
        places[Path("/etc") / name] = ["--ro-bind", str(folder / name), f"/etc/{name}"]
    places[Path("/dev")] = ["--dev", "/dev"]
    for path in [*glob("/dev/nvidia*"), "/dev/dxg"] if gpu else []:
        show(Path(path), "--dev-bind")
    # Root mounts it later: bubblewrap covers parts of it for root, and no child could mount its own.
    places[Path("/proc")] = ["--perms", "0755", "--dir", "/proc"] if drops else ["--proc", "/proc"]
    if mode == "fresh":
        for name in (SCRATCH, "/tmp", "/dev/shm"):
            cover(Path(name), "--size", str(SCRATCH_BYTES))
    else:  # children mount their own
        cover(Path(SCRATCH))
        places[Path("/tmp")] = ["--perms", "0755", "--dir", "/tmp"]

    # Python. Of a prefix only what Python has put there: it may be somebody's home directory.
    real = Path(os.path.realpath(sys.executable)).parent.parent
    for prefix in {Path(sys.prefix), Path(sys.base_prefix), Path(os.path.realpath(sys.base_prefix)), real}:
        for name in ("bin", "lib", "lib64", "include", "pyvenv.cfg"):
            show(prefix / name)
    link = Path(sys.executable)
    while link.is_symlink():
        if not shown(link):
            places[link] = ["--symlink", os.readlink(link), str(link)]
        link = link.parent / os.readlink(link)
    if not shown(torch_folder()):
        show(torch_folder())

    # The course. Where it or a home lies inside what is shown, the rest of it is covered.
    for path in (HOME, ROOT, ROOT / "autograder", labs.parent, labs.parent / "solutions"):
        if shown(path) and path.is_dir() and path != torch_folder():
            cover(path)
    for path in (ROOT / "course", labs, *(ROOT / "autograder" / name for name in INSIDE)):
        show(path)

    for path in list(places):
        for parent in path.parents[:-1]:
            places.setdefault(parent, ["--perms", "0755", "--dir", str(parent)])
    writable = {Path(SCRATCH), Path("/tmp"), Path("/dev/shm")}
    closed = ["/", *(str(p) for p, made in places.items() if made[-2] in ("--tmpfs", "--dev") and p not in writable)]
    return [shutil.which("bwrap"), "--die-with-parent", "--new-session", "--unshare-pid", "--unshare-net",
            "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--hostname", "localhost",
            *([] if drops else ["--unshare-user", "--uid", str(uid), "--gid", str(uid)]),
            *(option for path in sorted(places, key=lambda p: p.parts) for option in places[path]),
            *(option for place in closed for option in ("--remount-ro", place)), "--chdir", SCRATCH, "--"]


def missing() -> str:
    """Why isolation need not even be tried."""
    if sys.platform != "linux":
        return f"bubblewrap exists for Linux only, not for {sys.platform}; use WSL on Windows, else a virtual machine"
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed; install the package bubblewrap (apt, dnf, pacman, apk)"
    return ""


def cure() -> str:
    """What forbids namespaces here and how to change that, if it is one of the known things."""
    status = Path("/proc/self/status").read_text()
    if os.geteuid() == 0:
        if not int(status.split("CapEff:")[1].split()[0], 16) & 1 << 21:
            return ("this root has no CAP_SYS_ADMIN, as in most containers; start the container with --privileged, "
                    "or grade outside of it")
    for file, refuses, cure in (("user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=15000"),
                                ("kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
                                ("kernel/apparmor_restrict_unprivileged_userns", "1",
                                 "load AppArmor's profile bwrap-userns-restrict (package apparmor-profiles), "
                                 "or sysctl kernel.apparmor_restrict_unprivileged_userns=0")):
        with suppress(OSError):
            if Path("/proc/sys", file).read_text().strip() == refuses:
                return f"user namespaces are forbidden (/proc/sys/{file} is {refuses}); as root: {cure}"
    return ""
