"""Real ranks: a function on N processes of this machine, with torch.distributed between them.

    results = ranks.run(train, world=2, args=(...))     # [train(comm, ...) of rank 0, of rank 1]

A rank that raises, dies or hangs ends all of them, and `RankError` names it and shows where it stood; nothing is left
running. Under torchrun the same functions run with `ranks.join()` as their communicator, on one machine or several.
"""
from __future__ import annotations

import faulthandler
import io
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any

import cloudpickle
import torch
import torch.distributed as dist
from torch import Tensor

from course.comm import Communicator, Handle
from course.train import _Bar

# Newer versions of torch have other names for them.
_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class RankError(RuntimeError):
    """One rank failed; the text says which, how, and where in its code."""

    def _render_traceback_(self) -> list[str]:  # IPython shows these lines: the parent's own frames tell nothing
        return str(self).splitlines()


class RealCommunicator(Communicator):
    """The operations of course.comm, by torch.distributed. `record` keeps (kind, bytes) of all that was launched."""

    def __init__(self, group: dist.ProcessGroup | None = None):
        super().__init__(lambda *_: None, dist.get_rank(group), dist.get_world_size(group))
        self.group, self.record = group, []

    def _launch(self, kind: str, tensor: Tensor, peer: int = -1) -> Handle:
        self.record.append((kind, tensor.numel() * tensor.element_size() * (self.world if kind == "all_gather" else 1)))
        if kind == "recv":
            result = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device())
            work = dist.irecv(result, peer, self.group)
        elif kind == "send":
            result, keep = None, tensor.detach().contiguous()
            work = dist.isend(keep, peer, self.group)
            return Handle(lambda: (work.wait(), keep) and None)  # what is being sent must live until it has arrived
        else:
            result, work = self._collective(kind, tensor.detach().contiguous(), peer)
        return Handle(lambda: (work.wait(), result)[1])

    def _collective(self, kind: str, tensor: Tensor, peer: int) -> tuple[Tensor, dist.Work]:
        options = {"group": self.group, "async_op": True}
        if kind == "all_reduce":
            return (result := tensor.clone()), dist.all_reduce(result, **options)
        if kind == "broadcast":
            return (result := tensor.clone()), dist.broadcast(result, peer, **options)
        if kind == "all_gather":
            result = tensor.new_empty((self.world * tensor.shape[0], *tensor.shape[1:]))
            return result, _Keeping(_gather(result, tensor, **options), tensor)
        result = tensor.new_empty((tensor.shape[0] // self.world, *tensor.shape[1:]))
        return result, _Keeping(_reduce_scatter(result, tensor, **options), tensor)

    def _device(self) -> torch.device:
        return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(self.group) == "nccl" else torch.device("cpu")


class _Keeping:
    """A torch work that keeps its input alive until it is done."""

    def __init__(self, work: dist.Work, tensor: Tensor):
        self.work, self.tensor = work, tensor

    def wait(self) -> None:
        self.work.wait()
        self.tensor = None


def join() -> RealCommunicator:
    """The communicator of a process that torchrun has started: NCCL if every local rank has a GPU, else gloo."""
    local, here = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    gpu = torch.cuda.is_available() and torch.cuda.device_count() >= here
    if gpu:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if gpu else "gloo")
    return RealCommunicator()


def progress(done: int, total: int, loss: float = float("nan")) -> None:
    """From rank 0 of a running function: how far it is."""
    if _to_parent is not None and dist.get_rank() == 0 and time.monotonic() - progress.last > 0.2:
        progress.last = time.monotonic()
        _to_parent.send(("progress", done, total, loss))


progress.last = 0.0
_to_parent: connection.Connection | None = None


def run(function: Callable, world: int = 2, args: tuple = (), *, timeout: float = 60.0, show: bool = True) -> list[Any]:
    """`function(comm, *args)` on `world` processes; the results in the order of the ranks.

    Raises RankError if a rank raises, dies, or is not ready after `timeout` seconds. On Linux the processes are forked
    from this one, so that functions of a notebook can be run; elsewhere the function must be importable or picklable.
    `show`: a progress bar, fed by `ranks.progress` on rank 0.
    """
    start = "fork" if sys.platform == "linux" and not torch.cuda.is_initialized() else "spawn"
    context = get_context(start)
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(world)]
        job = (function, args) if start == "fork" else cloudpickle.dumps((function, args))
        processes = [context.Process(target=_rank, args=(job, rank, world, folder, timeout, writing, os.getpid()), daemon=True,
                                     name=f"rank {rank}") for rank, (_, writing) in enumerate(pipes)]
        try:
            for process, (_, writing) in zip(processes, pipes):
                process.start()
                writing.close()     # so that its end is seen here
            return _collect([reading for reading, _ in pipes], processes, Path(folder), timeout, show)
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
            for process, (reading, _) in zip(processes, pipes):
                process.join() if process.pid else None
                reading.close()


def _collect(readers: list, processes: list, folder: Path, timeout: float, show: bool) -> list[Any]:
    world = len(readers)
    results: dict[int, Any] = {}
    problems: dict[int, str] = {}
    begin = time.monotonic()
    end, patience = begin + timeout, 0.0
    with _Bar(1, f"{world} rank{'s' * (world > 1)}", show) as bar:
        while len(results) < world:
            open_ranks = {readers[r]: r for r in range(world) if r not in results and r not in problems}
            left = (patience or end) - time.monotonic()
            ready = connection.wait(list(open_ranks), max(0.0, left)) if open_ranks else []
            if not ready and not problems:
                raise RankError(_hanging(processes, sorted(open_ranks.values()), folder, timeout))
            if not ready:
                break
            for reader in ready:
                rank = open_ranks[reader]
                try:
                    kind, *content = reader.recv()
                except (EOFError, ConnectionError):
                    processes[rank].join(5)
                    kind, content = "died", [_cause(processes[rank].exitcode)]
                if kind == "progress":
                    done, bar.total, loss = content
                    bar.update(done, [torch.tensor(loss)], [])
                elif kind == "result":
                    results[rank] = torch.load(io.BytesIO(content[0]), weights_only=False)
                else:
                    problems[rank] = content[0]
                    # The others fail because of it a little later; wait for them that long, to tell cause from effect.
                    patience = patience or time.monotonic() + 0.5
        if not problems:
            bar.close(f"done in {time.monotonic() - begin:.1f} s")
    if problems:
        # A rank whose partner has gone reports a lost connection: it is not the first cause.
        rank = min(problems, key=lambda r: ("onnection" in problems[r], r))
        raise RankError(f"Rank {rank} of {world} {problems[rank]}")
    return [results[rank] for rank in range(world)]


def _rank(job: Any, rank: int, world: int, folder: str, timeout: float, writing: connection.Connection, parent: int) -> None:
    """The life of one rank."""
    global _to_parent
    torch.set_num_threads(1)    # before anything else: torch's threads do not survive a fork
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)    # the parent is interrupted, and ends its ranks
    stack = open(Path(folder) / f"stack{rank}", "w")
    faulthandler.register(signal.SIGUSR1, stack, all_threads=False)
    _to_parent = writing
    try:
        function, args = job if isinstance(job, tuple) else pickle.loads(job)
        store = dist.FileStore(str(Path(folder) / "store"), world)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=timeout + 5))
        result = io.BytesIO()
        torch.save(function(RealCommunicator(), *args), result)
        dist.barrier()      # nobody leaves while another still needs it
        writing.send(("result", result.getvalue()))
    except BaseException as error:
        writing.send(("error", f"raised {type(error).__name__}: {str(error)[:500]}\n{_trace(error)}"))
    finally:
        writing.close()
        os._exit(0)     # none of what the parent had open is ours to tidy up


def _trace(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[1:]
    return "".join(traceback.format_list(frames[-6:])).rstrip()


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by signal {signal.Signals(-code).name}" + (
            "; the system may have run out of memory" if code == -signal.SIGKILL else "") + "."
    return f"ended with exit code {code} before it had a result."


def _hanging(processes: list, late: list[int], folder: Path, timeout: float) -> str:
    for rank in late:
        with suppress(ProcessLookupError):
            os.kill(processes[rank].pid, signal.SIGUSR1)
    time.sleep(0.3)
    lines = [f"After {timeout:g} s there is no result of rank{'s' * (len(late) > 1)} {', '.join(map(str, late))}. Where they stand:"]
    for rank in late:
        stack = (folder / f"stack{rank}").read_text().strip().splitlines()[1:7]
        lines += [f"rank {rank}:", *(stack or ["  it does not answer"])]
    return "\n".join(lines)


def _die_with(parent: int) -> None:
    """If the parent is killed, so is this process."""
    if sys.platform == "linux":
        import ctypes
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)
