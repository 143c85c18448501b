"""The same jobs on an existing Dask cluster: `autograder grade ... --scheduler tcp://HOST:PORT`.

On each machine, in an environment with this project and with a checkout of the course:

    dask scheduler
    dask worker tcp://HOST:PORT --nworkers auto --nthreads 1
    dask worker tcp://HOST:PORT --nthreads 1 --resources "GPU=1"        one for each GPU

Submissions travel with the jobs; the course does not, and a worker whose copy of the lab is another one refuses.
Whoever reaches a Dask scheduler can run code on its workers: keep it in a trusted network, or use Dask's TLS.
"""
from __future__ import annotations

import re
import tempfile
import threading
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path

from autograder.jobs import Job, lab_of, work
from autograder.ledger import specification_stamp
from course.spec.load import SpecError

IN_FLIGHT = 2       # jobs a worker: the one it does and the next one
WAIT_SECONDS = 30   # for the scheduler, and for its first worker


class ClusterError(RuntimeError):
    """The cluster cannot judge; the text says why."""
    for_people = True


class Cluster:
    """Workers elsewhere; use as pool.Pool."""

    def __init__(self, address: str):
        try:
            from dask.distributed import Client
        except ImportError:
            raise ClusterError('Dask is not installed. Install the extra "cluster": pip install -e ".[cluster]"') from None
        self.address = address
        if not re.fullmatch(r"\w+://.+:\d+", address):  # Dask would say so late and at length
            raise ClusterError(f"{address} is no address of a Dask scheduler; that is like tcp://HOST:8786.")
        try:
            self._client = Client(address, timeout=WAIT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ClusterError(f"There is no Dask scheduler at {address}: {error}") from None
        try:
            self._client.wait_for_workers(1, timeout=WAIT_SECONDS)
        except TimeoutError:
            self._client.close()
            raise ClusterError(f"The Dask scheduler at {address} has no workers. Start some with: dask worker {address} --nthreads 1") from None

    @cached_property
    def gpus(self) -> int:
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        return int(sum(worker.get("resources", {}).get("GPU", 0) for worker in workers))

    def run(self, jobs: Iterable[Job], at_a_time: int | None = None) -> Iterator[tuple[Job, dict | str]]:
        """As Pool.run. Dask itself gives the jobs of a lost worker to another one."""
        from dask.distributed import CancelledError, KilledWorker, as_completed
        waiting, doing = iter(jobs), {}
        done = as_completed(loop=self._client.loop)
        while True:
            most = at_a_time or IN_FLIGHT * max(1, len(self._client.nthreads()))
            while len(doing) < most and (job := next(waiting, None)):
                future = self._submit(job)
                doing[future.key] = job
                done.add(future)
            if not doing:
                return
            future = next(done)
            job = doing.pop(future.key)
            try:
                answer = future.result()
            except KilledWorker:
                answer = "each worker of the cluster that judged it died; were they out of memory?"
            except CancelledError:
                raise ClusterError(f"The Dask scheduler at {self.address} was lost. The same command goes on from here.") from None
            except Exception as error:
                if getattr(error, "for_people", False) or isinstance(error, SpecError):
                    raise
                raise ClusterError(f"The cluster at {self.address} failed: {type(error).__name__}: {str(error).splitlines()[0]} "
                                   "Its scheduler and its workers need the environment of this project.") from error
            yield job, answer

    def _submit(self, job: Job):
        data = zlib.compress(job.path.read_bytes(), 1) if job.path.is_file() else None
        return self._client.submit(work_there, job, data, _stamp(job.root, job.lab), pure=False,
                                   resources={"GPU": 1} if job.gpu else None)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_) -> None:
        self._client.close()    # jobs that are under way are of no use to anybody then, and Dask drops them


@lru_cache(maxsize=8)
def _stamp(root: Path, lab: str) -> str:
    return specification_stamp(root, lab)


# ---------------------------------------------------------------- in a worker

_one_at_a_time = threading.Lock()   # a worker with several threads is still one process, and pytest needs it for itself
_stamps: dict[tuple[Path, str], str] = {}


def work_there(job: Job, data: bytes | None, stamp: str) -> dict | str:
    """As work(), with the notebook's compressed bytes, and this machine's copy of the course."""
    from autograder.grade import ROOT
    with _one_at_a_time, tempfile.TemporaryDirectory(prefix="trainfast-") as folder:
        root = job.root if (job.root / "solutions" / job.lab).is_dir() else ROOT
        here = specification_stamp(root, job.lab)
        if here != stamp:
            import socket
            raise ClusterError(f"{socket.gethostname()}:{root} has another version of {job.lab} than the grader. Bring both to the same one.")
        if _stamps.setdefault((root, job.lab), here) != here:  # the worker is older than the lab's newest version
            lab_of.cache_clear()
            _stamps.clear()
        path = Path(folder) / job.path.name
        if data is not None:
            path.write_bytes(zlib.decompress(data))
        return work(replace(job, root=root, path=path))
