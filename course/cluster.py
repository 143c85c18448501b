"""A cluster in one process: it routes every message between ranks, counts it, and lets it take simulated time.

    exchange = Exchange(world=4, cluster=Cluster(latency=5e-6, bandwidth=10e9))
    run = exchange.run([body, body, body, body])        # each body(post) talks through its own `post`
    run.values, run.seconds, run.kinds(0), run.sent_bytes(0), run.held_peak(0)

The judge uses it for the ranks of a submission, the notebook for checks (ranks are threads there), and the simulator
for clusters that nobody has at hand. Ranks take turns, one at a time: a rank runs until it must wait for another.
Its clock advances only by what it computes (`taking`) and by what it waits for, so that a result never depends on
the speed of this machine.
"""
from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from course.comm import Communicator, with_hooks
from course.spec.student import StudentError
from course.spec.values import Value, clone, walk


@dataclass(frozen=True)
class Cluster:
    """Equal devices on a ring: seconds until the first byte of a message arrives, and bytes a second each way."""
    latency: float = 0.0
    bandwidth: float = math.inf

    def duration(self, kind: str, nbytes: float, world: int) -> float:
        """Seconds of one operation on a tensor of `nbytes` in full (all shards together), collectives as rings."""
        hop = self.latency + nbytes / world / self.bandwidth
        return {"send": self.latency + nbytes / self.bandwidth,
                "broadcast": (world > 1) * ((world - 1) * self.latency + nbytes / self.bandwidth),
                "all_gather": (world - 1) * hop, "reduce_scatter": (world - 1) * hop,
                "all_reduce": 2 * (world - 1) * hop}[kind]


def sent(kind: str, nbytes: float, world: int) -> float:
    """Bytes that each rank sends in one operation on `nbytes` in full, when collectives go round a ring."""
    share = nbytes * (world - 1) / world
    return {"send": nbytes, "recv": 0, "broadcast": nbytes * (world > 1)}.get(kind, 2 * share if kind == "all_reduce" else share)


@dataclass
class Event:
    """Something that one rank did, or had done for it, from `begin` to `end` on the simulated clock."""
    rank: int
    what: str           # "launch", "wait", "free" or "compute"
    name: str           # of an operation its kind, of a computation the function's name
    begin: float
    end: float = math.inf
    ticket: int = -1    # which operation; of a computation the number of its layer, if it has one
    nbytes: int = 0     # of the tensor in full; of a computation the item's that it gave, a tuple such as a layer's gradient
    sent: float = 0.0   # bytes that this rank sends for it
    peer: int = -1


@dataclass
class Run:
    """What the ranks returned, and all that happened, in order."""
    values: list[Value]
    log: list[Event]
    world: int

    @property
    def seconds(self) -> float:
        """On the simulated clock, until the last rank has ended and the last message arrived."""
        return max((e.end for e in self.log), default=0.0)

    def events(self, rank: int, what: str) -> list[Event]:
        return [e for e in self.log if e.rank == rank and e.what == what]

    def kinds(self, rank: int) -> list[str]:
        """What the rank launched, in order."""
        return [e.name for e in self.events(rank, "launch")]

    def sent_bytes(self, rank: int) -> float:
        return sum(e.sent for e in self.events(rank, "launch"))

    def in_flight(self, rank: int) -> list[int]:
        """For each computation of the rank, in order: how many operations it had launched and not yet waited for."""
        pending, counts = set(), []
        for e in self.log:
            if e.rank == rank:
                if e.what == "launch":
                    pending.add(e.ticket)
                elif e.what == "wait":
                    pending.discard(e.ticket)
                elif e.what == "compute":
                    counts.append(len(pending))
        return counts

    def spans(self, rank: int, scale: float = 1.0) -> dict[str, list[tuple[float, float, str]]]:
        """For plots.timeline: when the rank computed and when its messages travelled, in seconds times `scale`."""
        return {f"rank {rank}, {row}": [(scale * e.begin, scale * e.end, e.name) for e in self.events(rank, what)]
                for row, what in (("computing", "compute"), ("messages", "launch"))}

    def held(self, rank: int) -> list[tuple[float, int]]:
        """(simulated time, bytes of gathered tensors that the rank holds), after each change. Counted from the launch,
        when the room for the result is taken, until the rank lets go of the last name for it."""
        alive, found = {}, [(0.0, 0)]
        for e in self.log:
            if e.rank == rank and e.name == "all_gather":
                if e.what == "launch":
                    alive[e.ticket] = e.nbytes
                elif e.what == "free":
                    alive.pop(e.ticket, None)
                found.append((e.begin, sum(alive.values())))
        return found

    def held_peak(self, rank: int) -> int:
        return max(size for _, size in self.held(rank))

    def items_peak(self, rank: int) -> int:
        """Bytes of items (tuples that computations gave, such as gradients for a hook) that the rank holds at the worst
        moment. It tells what it has let go of with its next message."""
        held, peak = 0, 0
        for e in self.log:
            if e.rank == rank and e.what == "compute":
                held += e.nbytes
            elif e.rank == rank and (e.what, e.name) == ("free", "item"):
                held -= e.nbytes
            peak = max(peak, held)
        return peak


@dataclass
class _Operation:
    kind: str
    nbytes: int
    form: tuple         # on which all who take part must agree
    tensors: dict[int, Value] = field(default_factory=dict)     # by rank
    launched: dict[int, float] = field(default_factory=dict)    # when, by rank
    events: list[Event] = field(default_factory=list)
    results: dict[int, Value] | None = None     # once all who take part have launched it
    end: float = 0.0


class Exchange:
    """Runs `world` ranks and stands between them. With `alike`, one rank is run and the others are taken to do the same
    at the same time: enough for the clock of a thousand devices. Tensors on the device "meta" have no numbers, only
    shapes: enough for the clock of a model of any size."""

    def __init__(self, world: int, cluster: Cluster = Cluster(), alike: bool = False):
        self.world, self.cluster, self.alike = world, cluster, alike
        self.running = 1 if alike else world
        self.now = [0.0] * self.running         # each rank's clock
        self.log: list[Event] = []
        self._out_at, self._in_at = ([0.0] * self.running for _ in "oi")    # when each rank's link has done all before
        self._operations: list[_Operation] = []
        self._given: list[list[int]] = [[] for _ in range(self.running)]    # by rank: bytes of each tensor of an item, 0 when let go
        self._place: dict[tuple, int] = {}      # the n-th collective, or the n-th message of a pair: its ticket
        self._counts: dict[tuple, int] = {}
        self._broken = ""
        self._waiting: dict[int, tuple[Callable[[], bool], str]] = {}
        self._wake = [threading.Semaphore(0) for _ in range(self.running)]
        self._ended: set[int] = set()

    # ------------------------------------------------------------ running

    def run(self, bodies: list[Callable[[Callable], Value]]) -> Run:
        """Run `bodies[rank](post)` for every rank. Raises the first rank's error, or a StudentError if none can go on."""
        values: list[Value] = [None] * self.running
        errors: dict[int, BaseException] = {}

        def rank_thread(rank: int) -> None:
            self._wake[rank].acquire()
            try:
                values[rank] = bodies[rank](lambda op, *args: self.post(rank, op, *args))
            except BaseException as error:
                errors[rank] = error
            self._ended.add(rank)
            self._pass_on(rank)

        threads = [threading.Thread(target=rank_thread, args=(rank,), daemon=True) for rank in range(self.running)]
        for thread in threads:
            thread.start()
        self._wake[0].release()
        try:
            for thread in threads:
                thread.join()
        finally:
            self._stop(threads)
        if errors:
            own = [e for e in errors.values() if not (self._broken and self._broken in str(e))]
            raise own[0] if own else _refusal(self._broken)
        for ticket, operation in enumerate(self._operations):
            if operation.results is None:
                rank = min(operation.launched)
                raise _refusal(f"Rank {rank} launched {self._words(ticket, rank)}, and the others ended without it.")
        return Run(values, self.log, self.world)

    def _stop(self, threads: list[threading.Thread]) -> None:
        """Interrupted: no rank may go on computing in the background."""
        for thread in threads:
            if thread.is_alive():
                self._broken = self._broken or "interrupted"
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
        for semaphore in self._wake:
            semaphore.release()

    def _pass_on(self, rank: int) -> None:
        """Wake the next rank that can go on. If none can, all of them learn why."""
        order = [(rank + i) % self.running for i in range(1, self.running + 1)]
        open_ranks = [r for r in order if r not in self._ended]
        able = [r for r in open_ranks if self._broken or r not in self._waiting or self._waiting[r][0]()]
        if open_ranks and not able:
            waits = [f"rank {r} waits for {self._waiting[r][1]}" for r in sorted(open_ranks)]
            self._broken = "No rank can go on: " + "; ".join(waits[:3]) + ("; ..." if len(waits) > 3 else ".")
            able = open_ranks
        if able:  # also when all is broken, they end one after the other
            self._waiting.pop(able[0], None)
            self._wake[able[0]].release()

    def _until(self, rank: int, ready: Callable[[], bool], why: str) -> None:
        if not ready():
            self._waiting[rank] = (ready, why)
            self._pass_on(rank)
            self._wake[rank].acquire()
        self._check()

    def _check(self) -> None:
        if self._broken:
            raise _refusal(self._broken)

    def _break(self, why: str) -> None:
        self._broken = self._broken or why
        self._check()

    # ------------------------------------------------------------ what a rank may ask for

    def post(self, rank: int, op: str, *args: Value) -> Value:
        """A communicator's request. Everything in it may come from an untrusted process."""
        self._check()
        match op, args:
            case "launch", (str(kind), tensor, int(peer), list(freed)) if kind in _KINDS and -1 <= peer < self.world:
                self._note_freed(rank, freed)
                return self._launch(rank, kind, tensor, _form(kind, tensor), peer)
            case "wait", (int(ticket), list(freed)) if 0 <= ticket < len(self._operations) and rank in self._operations[ticket].launched:
                self._note_freed(rank, freed)
                return self._wait(rank, ticket)
        raise _refusal(f"Rank {rank} asks for what no communicator can do: is the other rank's number below {self.world}?")

    def _launch(self, rank: int, kind: str, tensor: Value, form: tuple, peer: int) -> int:
        if kind in ("send", "recv"):
            if peer in (rank, -1) or self.alike:
                raise _refusal(f"Rank {rank} cannot {kind} {'to' if kind == 'send' else 'from'} rank {peer}.")
            pair = (rank, peer) if kind == "send" else (peer, rank)
            key, others, common = ("message", *pair), set(pair), form
        else:
            key, others, common = ("collective",), set(range(self.running)), (kind, *form, peer)
        count = self._counts[key, rank] = self._counts.get((key, rank), -1) + 1
        nbytes = _nbytes(tensor) * (self.world if kind == "all_gather" else 1)
        if (key, count) not in self._place:
            self._place[key, count] = len(self._operations)
            self._operations.append(_Operation("send" if key[0] == "message" else kind, nbytes, common))
        ticket = self._place[key, count]
        operation = self._operations[ticket]
        event = Event(rank, "launch", kind, self.now[rank], ticket=ticket, nbytes=nbytes, peer=peer,
                      sent=sent(kind, nbytes, self.world))
        self.log.append(event)
        if operation.form != common:
            first = min(operation.launched)
            if key[0] == "message":
                self._break(f"Rank {pair[0]} and rank {pair[1]} do not agree on message number {count + 1} between them: "
                            f"one means {_words(operation.form)}, the other {_words(common)}.")
            self._break(f"The ranks do not agree on collective number {count + 1}: rank {first} launches {operation.form[0]} "
                        f"of {_words(operation.form[1:])}, rank {rank} {kind} of {_words(form)}.")
        operation.tensors[rank] = clone(tensor)
        operation.launched[rank] = self.now[rank]
        operation.events.append(event)
        if set(operation.launched) == others:
            self._complete(operation)
        return ticket

    def _complete(self, operation: _Operation) -> None:
        """All who take part have launched it: its time and its results are known."""
        links = [(e.rank, link) for e in operation.events
                 for name, link in (("recv", self._out_at), ("send", self._in_at)) if e.name != name]
        start = max(*operation.launched.values(), *(link[rank] for rank, link in links))
        operation.end = start + self.cluster.duration(operation.kind, operation.nbytes, self.world)
        for event in operation.events:
            event.begin, event.end = start, operation.end
        for rank, link in links:
            link[rank] = operation.end
        operation.results = _results(operation, self.world, self.alike)
        operation.tensors.clear()

    def _wait(self, rank: int, ticket: int) -> Value:
        operation = self._operations[ticket]
        begin = self.now[rank]
        self._until(rank, lambda: operation.results is not None, self._words(ticket, rank))
        if rank not in operation.results:
            raise _refusal("An operation was waited for twice.")
        self.now[rank] = max(begin, operation.end)
        name = next(e.name for e in operation.events if e.rank == rank)
        self.log.append(Event(rank, "wait", name, begin, self.now[rank], ticket=ticket, nbytes=operation.nbytes))
        return operation.results.pop(rank)

    def _note_freed(self, rank: int, freed: list) -> None:
        for ticket in freed:
            if type(ticket) is int and -len(self._given[rank]) <= ticket < 0:
                self.log.append(Event(rank, "free", "item", self.now[rank], self.now[rank], nbytes=self._given[rank][-ticket - 1]))
                self._given[rank][-ticket - 1] = 0
            elif type(ticket) is int and 0 <= ticket < len(self._operations) and rank in self._operations[ticket].launched:
                operation = self._operations[ticket]
                self.log.append(Event(rank, "free", operation.kind, self.now[rank], self.now[rank], ticket, operation.nbytes))

    def watch(self, rank: int, args: Iterable) -> tuple:
        """The arguments of a rank; each call of a function among them is noted in the log, and takes its time."""
        return tuple(self._watched(rank, a) if callable(a) and not isinstance(a, Tensor) else a for a in args)

    def _watched(self, rank: int, function: Callable) -> Callable:
        name = getattr(function, "__name__", type(function).__name__)
        seconds = getattr(function, "seconds", 0.0)

        def compute(*args):
            self._check()
            begin = self.now[rank]
            result = function(*args)
            self.now[rank] += seconds(args, result) if callable(seconds) else seconds
            which = [*args[:1], *(result[:1] if type(result) is tuple else ())]     # a layer's number goes in or comes out
            number = next((x for x in which if type(x) is int), -1)
            given = [_nbytes(x) for x in result if isinstance(x, Tensor)] if type(result) is tuple else []
            self._given[rank] += given
            self.log.append(Event(rank, "compute", name, begin, self.now[rank], ticket=number, nbytes=sum(given)))
            return result
        return compute

    def _words(self, ticket: int, rank: int) -> str:
        operation = self._operations[ticket]
        event = next(e for e in operation.events if e.rank == rank)
        if event.name in ("send", "recv"):
            return f"its message to rank {event.peer} to be received" if event.name == "send" else f"a message from rank {event.peer}"
        place = next(count for (_, count), t in self._place.items() if t == ticket)
        return f"{event.name} (collective number {place + 1})"


_KINDS = ("send", "recv", "broadcast", "all_reduce", "all_gather", "reduce_scatter")
_DTYPES = {str(d): d for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8)}


def _nbytes(tensor: Value) -> int:
    if isinstance(tensor, Tensor):
        return tensor.numel() * tensor.element_size()
    shape, dtype = tensor
    return math.prod(shape) * _DTYPES[dtype].itemsize


def _form(kind: str, tensor: Value) -> tuple:
    """Shape and dtype of what is sent; of what is to be received they are all that is known."""
    if kind != "recv" and isinstance(tensor, Tensor):
        return tuple(tensor.shape), str(tensor.dtype)
    if kind == "recv" and type(tensor) is list and len(tensor) == 2 and type(tensor[0]) is list \
            and all(type(n) is int for n in tensor[0]) and tensor[1] in _DTYPES:
        return tuple(tensor[0]), tensor[1]
    raise _refusal("A malformed request to the communicator.")


def _words(form: tuple) -> str:
    return f"shape {list(form[0])}, {form[1].removeprefix('torch.')}"


def _refusal(why: str) -> StudentError:
    """Shapes and numbers in it come from the ranks, so a hidden test's message must not repeat them."""
    return StudentError(why, "failed", own_words=True)


def _results(operation: _Operation, world: int, alike: bool) -> dict[int, Value]:
    tensors, ranks = operation.tensors, sorted(operation.launched)
    match operation.kind:
        case "send":
            sender = next(r for r in ranks if isinstance(tensors[r], Tensor))
            return {r: None if r == sender else tensors[sender] for r in ranks}
        case "broadcast":
            root = operation.events[0].peer
            return {r: tensors[0 if alike else root].clone() for r in ranks}
        case "all_gather":
            whole = torch.cat([tensors[0 if alike else r] for r in range(world)])
            return {r: whole.clone() for r in ranks}
    total = tensors[0] * world if alike else torch.stack([tensors[r] for r in ranks]).sum(0)
    if operation.kind == "all_reduce":
        return {r: total.clone() for r in ranks}
    return {r: part.clone() for r, part in zip(ranks, total.chunk(world))}


# ---------------------------------------------------------------- functions that ranks are given

def taking(seconds: float | Callable[[tuple, Value], float], function: Callable) -> Callable:
    """The function, taking that long on the simulated clock: a number, or a function of (arguments, result)."""
    def timed(*args):
        return function(*args)
    timed.__name__ = getattr(function, "__name__", "compute")
    timed.seconds = seconds
    return timed


def stream(start: Callable[..., Iterable], name: str = "") -> Callable:
    """A function to be called with a hook: `start(*args)` gives the items, and the hook is called with each of them."""
    items: Any = iter(())

    def ask(*args):
        nonlocal items
        if args:
            items = iter(start(*args))
        return next(items, None)
    ask.__name__ = name or getattr(start, "__name__", "stream")
    return ask


def run(function: Callable, args: list[tuple] | Callable[[int], tuple], world: int | None = None,
        cluster: Cluster = Cluster(), alike: bool = False, **kwargs: Value) -> Run:
    """Run `function(comm, *args[rank], **kwargs)` on every rank, as threads here. `args`: a list, or a function of the rank."""
    world = len(args) if world is None else world
    exchange = Exchange(world, cluster, alike)

    def body(rank: int) -> Callable:
        own = exchange.watch(rank, args(rank) if callable(args) else args[rank])
        def rank_body(post: Callable) -> Value:
            comm = Communicator(post, rank, world)
            return function(comm, *(with_hooks(a, comm) if callable(a) and not isinstance(a, Tensor) else a for a in own), **kwargs)
        return rank_body
    return exchange.run([body(rank) for rank in range(exchange.running)])


def nbytes(value: Value) -> int:
    """Bytes of all tensors in a value, such as an optimiser's state."""
    return sum(_nbytes(leaf) for _, leaf in walk(value) if isinstance(leaf, Tensor))
