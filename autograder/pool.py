"""Workers on this machine: processes with one job at a time, each on a pipe of its own.

So the one that dies costs the job that it had and no other, where concurrent.futures would give up the whole pool.
When the grader dies, even by kill -9, they die with it, and their sandboxes with them.
"""
from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait

from autograder.jobs import Job, work

TRIES = 2   # of a job whose worker died


class Pool:
    """Use as a context manager."""
    gpus = 0    # workers apart for what needs a GPU: here any worker sees it

    def __init__(self, workers: int, work: Callable[[Job], dict | str] = work):
        self.size, self._work = workers, work
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._folder = tempfile.TemporaryDirectory(prefix="trainfast-")
        os.chmod(self._folder.name, 0o755)  # what the sandbox's self-test hides in it is then hidden by the sandbox alone

    def run(self, jobs: Iterable[Job], at_a_time: int | None = None) -> Iterator[tuple[Job, dict | str]]:
        """Each job with its verdict, or with words why there is none, as they come. Raises what concerns them all."""
        waiting, tries, busy = deque(jobs), Counter(), {}
        while waiting or busy:
            while waiting and len(busy) < (at_a_time or self.size):
                worker, job = self._worker(), waiting.popleft()
                busy[worker.pipe] = worker, job
                with suppress(OSError):  # if it has died just now, receiving says so
                    worker.pipe.send(job)
            for pipe in wait(list(busy)):
                worker, job = busy.pop(pipe)
                try:
                    answer = pipe.recv()
                except (EOFError, OSError):
                    worker.end()
                    self._all.discard(worker)
                    tries[job] += 1
                    if tries[job] < TRIES:
                        waiting.append(job)
                        continue
                    answer = f"the process that judged it died {TRIES} times; was it killed, or out of memory?"
                else:
                    self._idle.append(worker)
                if isinstance(answer, Exception):
                    raise answer
                yield job, answer

    def _worker(self) -> _Worker:
        while self._idle:
            if (worker := self._idle.pop()).process.is_alive():
                return worker
            self._all.discard(worker)
        worker = _Worker(self._work, self._folder.name)
        self._all.add(worker)
        return worker

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_) -> None:
        for worker in self._all:
            if worker in self._idle:
                worker.pipe.close()     # it ends by itself, and its fork server in good order
            else:
                worker.process.kill()
        for worker in self._all:
            worker.end()
        self._folder.cleanup()


class _Worker:
    def __init__(self, work: Callable[[Job], dict | str], folder: str):
        # spawn: a fork of a process that has imported torch may hang.
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work, folder), name="judge")
        self.process.start()
        theirs.close()  # so that its death is the end of file

    def end(self) -> None:
        """Wait for its end; make it, if it does not come."""
        self.pipe.close()
        self.process.join(10)
        self.process.kill()
        self.process.join()


def _serve(pipe: Connection, work: Callable[[Job], dict | str], folder: str) -> None:
    """In the worker: answer each job with what `work` gives or raises."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)    # Ctrl-C is the grader's, which then ends its workers
    threading.Thread(target=_die_with_parent, daemon=True).start()
    tempfile.tempdir = folder   # removed by the grader, also when this process is killed
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            answer = work(job)
        except Exception as error:
            answer = error
        pipe.send(answer)


def _die_with_parent() -> None:
    wait([parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGKILL)
