"""What a submission can reach from its sandbox, and what it leaves behind: nothing.

The attacks are cells of a submission, and reach the sandbox as a submission's do.
"""
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from autograder import bubblewrap, processes, sandbox
from autograder.bubblewrap import ROOT
from autograder.processes import tree
from autograder.remote import Remote
from autograder.sandbox import ForkServer, SandboxError
from course.spec.student import Student, StudentError

SECRET = "SECRET_OF_THE_GRADER"


@pytest.fixture
def needs_bubblewrap():
    if reason := bubblewrap.missing():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An isolated fork server, for a course whose visible tests lie in a temporary folder."""
    if reason := bubblewrap.missing():
        pytest.skip(reason)
    root = tmp_path_factory.mktemp("course")
    for file in ("labs/11_doubling/test_visible.py", "solutions/11_doubling/test_hidden.py", "gradebook.db",
                 "results/eve.json"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text("ANSWER = 42\n")
    os.environ[SECRET] = "42"
    try:
        with ForkServer(labs=root / "labs") as server:
            if server._mode != "nested" and bubblewrap.cure():
                pytest.skip(f"no nested namespaces: {server.isolation}")
            yield server
    finally:
        del os.environ[SECRET]


@pytest.fixture
def plain_only(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")


@contextmanager
def student(server: ForkServer, code: str):
    """The functions of a submission with this one cell."""
    remote = Remote(server, [textwrap.dedent(code)])
    try:
        assert not remote.cell_errors, remote.cell_errors
        yield Student(remote)
    finally:
        remote.close()


def attack(server: ForkServer, code: str, *args):
    """What the submission's function `attack` returns."""
    with student(server, code) as each:
        return each.attack(*args)


READ = """
    def attack(paths):
        found = []
        for path in paths:
            try:
                found += [path] if open(path, "rb").read(1) else []
            except OSError:
                pass
        return found
"""
WRITE = """
    import os
    def attack(folders):
        written = []
        for folder in folders:
            try:
                open(os.path.join(folder, "written"), "w").close()
                written.append(folder)
            except OSError:
                pass
        return written
"""


# ---------------------------------------------------------------- what is said of it

def test_isolated_is_said_with_how(server):
    assert server.isolation.startswith("isolated: bubblewrap, uid "), server.isolation
    uid = int(server.isolation.split("uid ")[1].split(",")[0])
    assert uid != 0 and (os.geteuid() == 0 or uid == os.geteuid())


@pytest.mark.parametrize("lie, words", [
    ({"secrets": [str(ROOT / "course" / "__init__.py")]}, "can be read"),
    ({"absent": [str(ROOT / "course")]}, "can be seen"),
    ({"processes": 50}, "no limit on processes"),
    ({"writable": []}, "can be written"),
    ({"scratch_bytes": 1 << 20}, "has no limit"),
    ({"environment": []}, "foreign environment variables"),
    ({"uid": 1}, "runs as uid")])
def test_the_self_test_notices_what_is_wrong(server, monkeypatch, lie, words):
    traps = sandbox._traps

    @contextmanager
    def with_a_hole(*args):
        with traps(*args) as expected:
            yield expected | lie
    monkeypatch.setattr(sandbox, "_traps", with_a_hole)
    with pytest.raises(SandboxError, match=words):
        server._self_test()


def test_without_bubblewrap_the_package_to_install_is_named(plain_only):
    with pytest.raises(SandboxError, match="not isolated: .* install the package bubblewrap"):
        ForkServer(require_isolation=True)


def test_on_other_systems_isolation_is_not_claimed(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "Linux only" in bubblewrap.missing()


# ---------------------------------------------------------------- files

def test_nothing_secret_can_be_read(server):
    course = server.labs.parent
    paths = [course / "solutions/11_doubling/test_hidden.py", course / "gradebook.db", course / "results/eve.json",
             ROOT / "autograder/judge.py", ROOT / "pyproject.toml", ROOT / ".git/HEAD", Path.home() / ".bashrc",
             Path.home() / ".profile", __file__, "/etc/shadow", "/etc/hostname", "/proc/1/mem", "/proc/kcore", "/dev/mem",
             *ROOT.glob("solutions/*/*.py")]
    assert attack(server, READ, list(map(str, paths))) == []


def test_the_visible_tests_have_the_same_path_inside(server):
    path = str(server.labs / "11_doubling" / "test_visible.py")
    assert attack(server, READ, [path]) == [path]


def test_no_other_file_of_the_course_can_be_found(server):
    code = """
        import os
        def attack(folders, known):
            found = []
            for folder in folders:
                for where, inner, names in os.walk(folder):
                    inner[:] = [name for name in inner if os.path.join(where, name) not in known]
                    found += [os.path.join(where, name) for name in names]
            return sorted(found)
    """
    known = [str(ROOT / "course"), sys.prefix, sys.base_prefix, str(server.labs)]
    roots = [str(ROOT), str(Path.home()), str(server.labs.parent), "/home", "/root", "/var", "/opt", "/srv", "/mnt", "/run"]
    found = [path for path in attack(server, code, roots, known) if not path.startswith(sys.base_prefix)]
    assert sorted(set(found)) == sorted(str(ROOT / "autograder" / name) for name in bubblewrap.INSIDE)


def test_only_scratch_and_shared_memory_can_be_written(server):
    folders = ["/", "/etc", "/usr", "/usr/bin", "/dev", "/proc", "/proc/self", "/sys/devices/system", sys.prefix + "/lib",
               str(ROOT), str(ROOT / "course"), str(ROOT / "autograder"), str(server.labs), "/root", "/home",
               "/scratch", "/dev/shm"]
    assert attack(server, WRITE, folders) == ["/scratch", "/dev/shm"]


def test_proc_sys_cannot_be_written(server):
    code = """
        def attack():
            for name in ("kernel/core_pattern", "kernel/hostname", "user/max_user_namespaces", "net/ipv4/ip_forward"):
                try:
                    open("/proc/sys/" + name, "w").close()
                    return name
                except OSError:
                    pass
    """
    assert attack(server, code) is None


def test_a_disk_bomb_fills_its_own_scratch_space_only(server):
    code = """
        import os
        def attack(most):
            block, total = bytes(32 << 20), 0
            try:
                while total < most:
                    with open(f"file{total}", "wb") as file:
                        total += file.write(block)
            except OSError as error:
                return total, error.strerror
        def one_large_file():
            try:
                with open("large", "wb") as file:
                    file.truncate(65 << 20)
            except OSError as error:
                return error.strerror
    """
    with student(server, code) as bomber:
        assert bomber.one_large_file() == "File too large"
        total, error = bomber.attack(2 * bubblewrap.SCRATCH_BYTES)
    assert total <= bubblewrap.SCRATCH_BYTES and error == "No space left on device"


def test_file_descriptors_run_out_for_their_owner_only(server):
    code = """
        import os
        kept = []
        def attack():
            try:
                while True:
                    kept.append(os.dup(0))
            except OSError:
                return len(kept)
    """
    with student(server, code) as hoarder:
        assert 200 < hoarder.attack() < 256
        assert attack(server, "def attack(): return open('/proc/self/status').readline()[:4]") == "Name"


# ---------------------------------------------------------------- network

def test_the_hosts_loopback_and_the_outside_are_out_of_reach(server):
    code = """
        import socket
        def attack(port, name):
            reached = []
            for family, address in ((socket.AF_INET, ("127.0.0.1", port)), (socket.AF_UNIX, chr(0) + name), (40, (2, 22)),
                                    (socket.AF_INET, ("192.0.2.1", 80)), (socket.AF_INET6, ("2001:db8::1", 80))):
                try:
                    with socket.socket(family) as s:
                        s.settimeout(1)
                        s.connect(address)
                    reached.append(str(address))
                except OSError:
                    pass
            return reached
    """
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind("\0trainfast-test")
        unix.listen()
        assert attack(server, code, tcp.getsockname()[1], "trainfast-test") == []


def test_the_own_loopback_works_by_name(server):
    code = """
        import socket
        def attack():
            with socket.create_server(("127.0.0.1", 0)) as s, socket.create_connection(("localhost", s.getsockname()[1])):
                return socket.gethostbyname(socket.gethostname())
    """
    assert attack(server, code) == "127.0.0.1"


def test_four_ranks_of_gloo_find_each_other(server):
    code = """
        import os, torch, torch.distributed as dist
        def rank(number, writing):
            dist.init_process_group("gloo", init_method="file:///scratch/meet", rank=number, world_size=4)
            total = torch.tensor([float(number)])
            dist.all_reduce(total)
            os.write(writing, b"%d " % int(total))
            os._exit(0)
        def attack():
            reading, writing = os.pipe()
            pids = [os.fork() or rank(n, writing) for n in range(4)]
            for pid in pids:
                os.waitpid(pid, 0)
            return os.read(reading, 100).decode()
    """
    assert attack(server, code) == "6 6 6 6 "


# ---------------------------------------------------------------- processes and privileges

def test_no_privileges_and_none_to_be_had(server):
    code = """
        import ctypes, os, subprocess
        def attack():
            libc = ctypes.CDLL(None, use_errno=True)
            got = []
            for name, args in {"unshare": (0x10000000,), "setns": (0, 0), "ptrace": (16, 1, 0, 0), "setuid": (0,),
                               "mount": (b"proc", b"/scratch", b"proc", 0, None), "chroot": (b"/scratch",),
                               "memfd_create": (b"x", 0), "shmget": (0, 4096, 0o1666)}.items():
                if getattr(libc, name)(*args) >= 0:
                    got.append(name)
            for number in (250, 321, 425, 435):  # keyctl, bpf, io_uring_setup, clone3 on x86-64
                if os.uname().machine == "x86_64" and libc.syscall(number, 0, 0, 0, 0) >= 0:
                    got.append(str(number))
            for command in (["unshare", "-Ur", "true"], ["su", "-c", "true"], ["mount", "-t", "tmpfs", "x", "/scratch"]):
                if subprocess.run(command, capture_output=True).returncode == 0:
                    got.append(" ".join(command))
            status = open("/proc/self/status").read().split("Cap")[1:]
            return got, all(int(line.split()[1], 16) == 0 for line in status)
    """
    assert attack(server, code) == ([], True)


def test_only_its_own_process_is_visible_and_can_be_killed(server):
    code = """
        import os
        def attack():
            alive = []
            for pid in range(-1, 5000):
                if pid not in (-1, 0):
                    try:
                        os.kill(pid, 0)
                        alive.append(pid)
                    except OSError:
                        pass
            for signal in (9, 15, 19):
                try:
                    os.kill(-1, signal)
                except OSError:
                    pass
                try:
                    os.kill(os.getppid(), 0)  # 0 is its own group
                except OSError:
                    pass
            return alive, os.getppid(), [name for name in os.listdir("/proc") if name.isdigit()]
    """
    other = server.fork()
    assert attack(server, code) == ([1], 0, ["1"])
    assert other in server._process.children and tree(other.pid), "a sibling was killed"
    server.kill(other)


def test_the_environment_says_nothing(server):
    code = """
        import os
        def attack():
            return " ".join(os.environ) + open("/proc/self/environ").read() + open("/proc/1/cmdline").read()
    """
    said = attack(server, code)
    assert SECRET not in said and "HOME" in said


def test_a_fork_bomb_stops_at_its_limit_and_disturbs_nobody(server):
    code = """
        import os
        def attack():
            while True:
                try:
                    os.fork()
                except OSError:
                    pass
    """
    bomber = server.fork()
    bomber.connection.send("cells", {"cells": [textwrap.dedent(code)], "skip": [], "seed": 0})
    bomber.connection.receive()
    bomber.connection.send("call", {"function": "attack", "request": 1}, ((), {}, None))
    time.sleep(1)
    processes = tree(bomber.pid)
    assert 1 < len(processes) <= sandbox.PROCESSES
    assert attack(server, "import os\ndef attack(): return os.waitpid(os.fork() or os._exit(7), 0)[1]") == 7 << 8
    server.kill(bomber)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in processes)


def test_a_memory_bomb_gets_a_memory_error(server):
    code = """
        import numpy
        def attack():
            kept = []
            try:
                while len(kept) < 100:
                    kept.append(numpy.empty(256 << 20, numpy.uint8))  # not written to, so that this test is quick
            except MemoryError:
                return len(kept)
    """
    assert attack(server, code) < 16


@pytest.mark.parametrize("how", ["processes", "shared memory"])
def test_memory_is_counted_over_all_processes(server, monkeypatch, how):
    monkeypatch.setattr(server._process, "memory", 1 << 30)
    code = """
        import mmap, os, time
        def processes():
            for _ in range(5):
                if os.fork() == 0:
                    kept = b"x" * (200 << 20)
                    time.sleep(60)
            time.sleep(60)
        def shared_memory():
            kept, block = mmap.mmap(-1, 1000 << 20), bytes(1 << 20)
            for _ in range(1000):
                kept.write(block)
            time.sleep(60)
    """
    with student(server, code) as bomber:
        [child] = server._process.children
        with pytest.raises(StudentError, match="ended its process"):
            getattr(bomber, how.replace(" ", "_"))()
        assert child.ended == "used more than 1 GiB of memory"
    assert child.peak_bytes > 1 << 30


def test_a_large_shared_heritage_is_not_counted_as_used(server, monkeypatch):
    monkeypatch.setattr(server._process, "memory", 1 << 30)
    code = """
        import os, time
        def attack():
            pids = [os.fork() or (time.sleep(1), os._exit(0)) for _ in range(8)]
            return [os.waitpid(pid, 0)[1] for pid in pids]
    """
    assert attack(server, code) == [0] * 8


def test_a_child_that_other_programs_keep_from_running_gets_the_time_that_they_took(server, monkeypatch):
    monkeypatch.setattr("autograder.remote.CALL_SECONDS", 0.3)
    with student(server, "import time\ndef attack():\n    time.sleep(0.8)\n    return 1") as each:
        monkeypatch.setattr(server, "starved", lambda child: 1.0)
        assert each.attack() == 1
        monkeypatch.setattr(server, "starved", lambda child: 0.0)
        with pytest.raises(StudentError, match="no answer within 0.3 seconds"):
            each.attack()


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="this kernel does not count how long a process waits to run")
def test_two_who_share_a_core_starve_each_other_and_one_who_sleeps_is_not_starved(server):
    core = min(os.sched_getaffinity(0))
    spin = f"import os\nos.sched_setaffinity(0, [{core}])\nwhile True: pass"
    burners = [subprocess.Popen([sys.executable, "-c", code]) for code in (spin, spin, "import time\ntime.sleep(60)")]
    try:
        time.sleep(2)
        first, second, sleeper = (server.starved(SimpleNamespace(pid=burner.pid)) for burner in burners)
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    assert min(first, second) > 0.3 and sleeper < first


def test_what_a_submission_leaves_running_ends_with_it(server):
    code = """
        import os, time
        def attack():
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    time.sleep(1000)
                os._exit(0)
            os.wait()
    """
    with student(server, code) as each:
        each.attack()
        [child] = server._process.children
        processes = tree(child.pid)
        assert len(processes) == 2
    assert not any(os.path.exists(f"/proc/{pid}") for pid in processes)


@pytest.mark.parametrize("end", ["os._exit(0)", "os.abort()", "ctypes.string_at(0)"])
def test_a_crash_ends_its_own_process_only(server, end):
    code = f"import ctypes, os\ndef attack(): {end}\ndef still(): return 1"
    with student(server, code) as each:
        each.begin("first")
        with pytest.raises(StudentError, match="ended its process"):
            each.attack()
        each.begin("second")
        assert each.still() == 1


# ---------------------------------------------------------------- siblings

LEAVE = """
    import ctypes, os, socket
    libc = ctypes.CDLL(None)
    kept = []
    def leave():
        for folder in ("/dev/shm", "/scratch", os.getcwd(), os.environ["HOME"], os.environ["TMPDIR"]):
            open(folder + "/left", "w").write("the answer")
        kept.append(socket.socket(socket.AF_UNIX))
        kept[0].bind(chr(0) + "left")
        kept[0].listen()
        libc.msgget(4711, 0o1666)  # a System V message queue
    def attack():
        found = [f for f in ("/dev/shm", "/scratch", "/tmp", os.getcwd()) if os.path.exists(f) and "left" in os.listdir(f)]
        try:
            socket.socket(socket.AF_UNIX).connect(chr(0) + "left")
            found.append("socket")
        except OSError:
            pass
        return found + (["queue"] if libc.msgget(4711, 0) >= 0 else [])
"""


def test_siblings_find_nothing_of_each_other(server):
    with student(server, LEAVE) as first:
        first.leave()
        assert len(first.attack()) >= 5
        assert attack(server, LEAVE) == []  # beside it
    assert attack(server, LEAVE) == []      # and after it


def test_each_child_draws_its_own_random_numbers(server):
    code = "import numpy\nnumbers = numpy.random.rand(3).tolist()\ndef attack(): return numbers"
    assert attack(server, code) != attack(server, code)


# ---------------------------------------------------------------- ends

def gone(pids, seconds=20.0) -> bool:
    deadline = time.monotonic() + seconds
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_a_fork_server_that_died_is_replaced_at_the_next_fork(server):
    child = server.fork()
    old = server._process
    inside = [pid for pid in tree(old._popen.pid) if pid != child.pid]
    os.kill(inside[-1], signal.SIGKILL)
    assert gone(inside) and gone([child.pid])
    server.kill(child)  # does not raise
    assert "ended" in child.ended
    assert attack(server, "def attack(): return 1") == 1
    assert server._process is not old


DAEMON = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(1000)"


def test_closing_ends_everything_at_once(server):
    child = server.fork()
    child.connection.send("cells", {"cells": [DAEMON, "while True: pass"], "skip": [], "seed": 0})
    child.connection.receive()
    processes = tree(server._process._popen.pid)
    assert len(processes) >= 4
    server._stop()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in processes)


GRADER = f"""
    import sys, time
    from autograder.sandbox import ForkServer
    with ForkServer() as server:
        child = server.fork()
        child.connection.send("cells", {{"cells": [{DAEMON!r}, "while True: pass"], "skip": [], "seed": 0}})
        child.connection.receive()
        print(server.isolation, flush=True)
        if "end" not in sys.argv:
            time.sleep(1000)
"""


@contextmanager
def grader(*wrapper: str, environment: dict | None = None, arguments: tuple = ()):
    """Another grader, which says its isolation, while a submission of its loops for ever."""
    command = [*wrapper, sys.executable, "-c", textwrap.dedent(GRADER), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as popen:
        try:
            yield popen, popen.stdout.readline().strip()
        finally:
            popen.kill()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("path", [None, "/nonexistent"], ids=["isolated", "plain"])
def test_a_killed_grader_leaves_no_process(path):
    with grader(environment={"PATH": path} if path else None) as (popen, isolation):
        assert isolation.startswith("not isolated" if path or bubblewrap.missing() or bubblewrap.cure() else "isolated")
        processes = tree(popen.pid)
        assert len(processes) >= 4  # itself, a fork server, a submission, what that one left
        popen.kill()
        popen.wait()
        assert gone(processes)


# ---------------------------------------------------------------- other systems

def test_where_namespaces_cannot_be_nested_each_submission_gets_a_bubblewrap(needs_bubblewrap, monkeypatch):
    monkeypatch.setenv(sandbox.NO_NESTED, "1")
    monkeypatch.setenv(SECRET, "42")
    code = textwrap.dedent(LEAVE) + textwrap.dedent("""
        def secrets(paths):
            import subprocess
            found = [path for path in paths if os.path.exists(path)] + [name for name in os.environ if "SECRET" in name]
            found += ["unshare"] * (subprocess.run(["unshare", "-Ur", "true"], capture_output=True).returncode == 0)
            if os.fork() == 0:
                os.setsid()
                os.read(os.pipe()[0], 1)
            return found
    """)
    with ForkServer() as fresh:
        if fresh._mode == "plain" and bubblewrap.cure():
            pytest.skip(fresh.isolation)
        assert fresh.isolation.startswith("isolated: bubblewrap") and "cannot be nested" in fresh.isolation
        with student(fresh, code) as first:
            first.leave()
            assert first.secrets([str(ROOT / "solutions"), str(ROOT / "autograder/judge.py"), "/etc/shadow"]) == []
            processes = tree(first._transport._child.pid)
            assert len(processes) >= 4  # bubblewrap twice, the submission, what it left
            assert attack(fresh, code) == []
            fresh.close()
            assert not any(os.path.exists(f"/proc/{pid}") for pid in processes)


def ordinary_user() -> list[str]:
    """A command that runs another as an ordinary user who can read this Python, where this user could not by itself."""
    if os.geteuid() != 0:
        return []
    python = Path(sys.base_prefix)
    command = ["bwrap", "--dev-bind", "/", "/"]
    if python.is_relative_to(Path.home()):
        command += ["--tmpfs", str(Path.home())]
        for parent in [p for p in reversed(python.parents) if p.is_relative_to(Path.home())]:
            command += ["--perms", "0755", "--dir", str(parent), "--chmod", "0755", str(parent)]
        command += ["--ro-bind", str(python), str(python)]
    return [*command, "--", "setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups", "--inh-caps=-all",
            "--bounding-set=-all"]


def test_an_ordinary_user_gets_isolation_too(needs_bubblewrap):
    if os.geteuid() != 0:
        pytest.skip("this is an ordinary user already")
    look = f"import os; os.listdir({sys.base_prefix!r}); os.listdir({str(ROOT)!r})"
    if subprocess.run([*ordinary_user(), sys.executable, "-c", look], capture_output=True).returncode:
        pytest.skip("no ordinary user can run this Python here")
    with grader(*ordinary_user(), environment={"HOME": "/"}, arguments=("end",)) as (_, isolation):
        assert isolation.startswith("isolated: bubblewrap, uid 12345")


def test_forbidden_user_namespaces_are_named_with_the_setting(needs_bubblewrap):
    code = "from autograder.sandbox import ForkServer\nForkServer(require_isolation=True)"
    script = 'echo 0 > /proc/sys/user/max_user_namespaces || exit 9; exec "$@"'
    done = subprocess.run(["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh", sys.executable, "-c", code],
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    if done.returncode == 9 or "unshare" in done.stderr:
        pytest.skip(f"cannot forbid user namespaces here: {done.stderr[:100]}")
    assert "not isolated: user namespaces are forbidden" in done.stderr and "sysctl user.max_user_namespaces" in done.stderr


def test_a_root_without_its_powers_is_told_so(needs_bubblewrap):
    if os.geteuid() != 0:
        pytest.skip("needs root")
    code = "from autograder.sandbox import isolation_report\nprint(isolation_report())"
    done = subprocess.run(["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", sys.executable, "-c", code],
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert "not isolated: this root has no CAP_SYS_ADMIN" in done.stdout


def test_a_cgroup_is_used_where_the_kernel_offers_one(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "CGROUPS", tmp_path)
    monkeypatch.setattr(processes, "tree", lambda pid: [pid])
    (tmp_path / "cgroup.subtree_control").write_text("cpu\n")
    assert processes.cgroup_for(os.getpid(), 1 << 30, 256) is None
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory pids\n")
    group = processes.cgroup_for(os.getpid(), 1 << 30, 256)
    assert (group / "memory.max").read_text() == str(1 << 30)
    assert (group / "cgroup.procs").read_text() == str(os.getpid())
