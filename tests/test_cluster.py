"""The same jobs on a Dask cluster: a real scheduler and three workers on this machine, one of which is killed half-way."""
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest

from autograder import build, cluster
from autograder.cluster import Cluster, ClusterError, work_there
from autograder.demo import fill
from autograder.grade import find_submissions, grade, specification_stamp
from autograder.jobs import Job
from autograder.judge import Lab

pytest.importorskip("dask.distributed")
ROOT = Path(__file__).resolve().parents[1]
LAB = "11_doubling"
RIGHT, WRONG = "def double(x):\n    return 2 * x", "import time\ndef double(x):\n    time.sleep(0.2)\n    return 3 * x"
# A target that only the worker with the GPU can judge; what it takes for a GPU is a variable of the environment.
TARGET = '''

import os
import time

from course.spec import speed


@speed("double", points=0.5, ratio=2, inputs=lambda seed: (float(seed % 100),),
       requires=lambda: None if "TRAINFAST_TEST_GPU" in os.environ else "It needs a GPU.")
def doubled_slowly(x):
    """Twice as fast as a slow one."""
    time.sleep(0.02)
    return 2 * x
'''


def test_what_is_no_scheduler_is_said_at_once(monkeypatch):
    with pytest.raises(ClusterError, match="nonsense is no address of a Dask scheduler; that is like tcp://HOST:8786"):
        Cluster("nonsense")
    monkeypatch.setattr(cluster, "WAIT_SECONDS", 0.5)
    with pytest.raises(ClusterError, match="There is no Dask scheduler at tcp://127.0.0.1:9: "):
        Cluster("tcp://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    with pytest.raises(ClusterError, match='Install the extra "cluster"'):
        Cluster("tcp://127.0.0.1:9")


def test_a_worker_whose_copy_of_the_lab_is_another_one_refuses(small_course):
    root = small_course()
    with pytest.raises(ClusterError, match="has another version of 11_doubling than the grader"):
        work_there(Job(root, LAB, "ada", root / "ada.ipynb"), None, "of the grader")
    assert specification_stamp(root, LAB)


@pytest.fixture
def start():
    """`start("scheduler", ...)` starts Dask's; all end with the test."""
    started = []

    def command(*arguments, log, **environment):
        # The package's folder comes with the environment in earnest; here it is found from any folder.
        process = subprocess.Popen([sys.executable, "-m", "dask", *arguments, "--no-dashboard"], stderr=log.open("w"), cwd=log.parent,
                                   env={**os.environ, "PYTHONPATH": str(ROOT), **environment})
        started.append(process)
        return process
    yield command
    for process in reversed(started):
        process.kill()
        process.wait()


def wait_for_address(log, process):
    while not (found := re.search(r"Scheduler at: +(tcp://\S+)", log.read_text() if log.exists() else "")):
        assert process.poll() is None, log.read_text()
    return found[1]


@pytest.mark.slow
def test_a_class_is_graded_once_though_a_worker_dies_and_timing_goes_to_the_one_with_the_gpu(small_course, start, tmp_path):
    from course.spec.load import VISIBLE
    plain = (small_course() / "solutions" / LAB / VISIBLE).read_text()
    root = small_course({VISIBLE: plain + TARGET, "doubling.py": ("check(double)\n", "check(double)\n\n# %%\nspeed(double)\n")})
    build.build(root / "solutions" / LAB, root)
    lab = Lab(root, LAB)
    for number in range(9):
        path = root / "submitted" / f"s{number}" / LAB / "doubling.ipynb"
        path.parent.mkdir(parents=True)
        nbformat.write(fill(lab.released, {"double": WRONG if number else RIGHT}), path)
    (root / "submitted" / "s8" / LAB / "doubling.ipynb").write_bytes(b"%PDF-1.7")

    scheduler = start("scheduler", "--host", "127.0.0.1", "--port", "0", log=tmp_path / "scheduler.log")
    address = wait_for_address(tmp_path / "scheduler.log", scheduler)
    common = ["worker", address, "--no-nanny", "--nthreads", "1"]
    workers = [start(*common, log=tmp_path / "1.log"), start(*common, log=tmp_path / "2.log"),
               start(*common, "--resources", "GPU=1", log=tmp_path / "3.log", TRAINFAST_TEST_GPU="1")]
    told, killed = [], []

    def progress(result):
        told.append(result["student"])
        at_work = [] if killed else [w for w in workers[:2] if psutil.Process(w.pid).children()]  # with a sandbox
        if at_work:
            killed.extend([psutil.Process(at_work[0].pid), *psutil.Process(at_work[0].pid).children(recursive=True)])
            at_work[0].kill()
            at_work[0].wait()
    found = grade(LAB, find_submissions(LAB, [root / "submitted"]), tmp_path / "results", root=root, scheduler=address, progress=progress)

    assert sorted(told) == [r["student"] for r in found] == [f"s{n}" for n in range(9)]
    speed = {r["student"]: next(t["status"] for t in r["tests"] if t["name"].startswith("speed_")) for r in found}
    assert speed == {"s0": "passed", **{f"s{n}": "failed" for n in range(1, 8)}, "s8": "error"}   # deferred is none
    assert [r["score"] for r in found] == [1.3, *[0.2] * 7, 0] and {r["max_score"] for r in found} == {1.3}
    assert "PDF" in found[8]["error"] and not any(r["error"] for r in found[:8])
    assert killed and psutil.wait_procs(killed, timeout=60)[1] == []
    assert len(list((tmp_path / "results" / LAB).iterdir())) == 9
