"""A submission in its own process, as the specification sees it: a Transport over the pipe, with deadlines."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import NoneType

from autograder.protocol import Closed, Deadline, ProtocolError
from autograder.sandbox import Child, ForkServer
from course.cluster import Exchange
from course.spec.student import Call, NotWritten, Outcome, StudentError
from course.spec.values import NotAValue, Value

CELL_SECONDS, CALL_SECONDS, EXERCISE_SECONDS = 10.0, 5.0, 20.0
PATIENCE = 4.0  # so many times longer, at the most, for a child that other programs keep from running


class Remote:
    """Executes `cells` in a child of `server` and forwards calls to it.

    A child that hangs or dies is replaced for the next exercise: it costs the exercise at hand and no other.
    `cell_errors` maps a cell's index to what it raised.
    """

    def __init__(self, server: ForkServer, cells: list[str], seed: int = 0):
        self.server, self.cells, self.seed = server, cells, seed
        self.cell_errors: dict[int, str] = {}
        self.peak_bytes = 0
        self._child: Child | None = None
        self._exercise: str | None = None
        self._requests = 0
        self._failure: StudentError | None = None   # why the exercise at hand gets no more answers
        self._left = float("inf")           # seconds that the exercise at hand may still take
        self._starved = 0.0                 # of the child's, when the exercise began
        self._hanging: set[int] = set()
        self._others: list[Remote] = []     # ranks 1, 2, ... of collective exercises, from the first one on
        self._execute_cells()

    # ------------------------------------------------------------ Transport

    def begin(self, exercise: str, seconds: float | None = None) -> None:
        """A new exercise: a fresh allowance of time, and a fresh child if the last one was lost."""
        if exercise == self._exercise:
            return
        for other in self._others:
            other.begin(exercise, seconds)
        self._exercise, self._failure = exercise, None
        self._left = seconds or EXERCISE_SECONDS
        if self._child is None:
            self._execute_cells()
        self._starved = self.server.starved(self._child)

    def call_ranks(self, calls: list[Call], exchange: Exchange) -> list[Outcome]:
        """Each rank in a child of its own; every message goes through `exchange`, here."""
        while len(self._others) < len(calls) - 1:
            self._others.append(Remote(self.server, self.cells, self.seed))
            self._others[-1].begin(self._exercise)
        for remote in (self, *self._others):
            if remote._failure is not None:
                raise remote._failure

        def body(rank: int, call: Call) -> Callable:
            remote, args = [self, *self._others][rank], exchange.watch(rank, call.args)
            return lambda post: remote.call(Call(call.function, (post, *args), call.kwargs), rank, exchange.world)
        outcomes = exchange.run([body(rank, call) for rank, call in enumerate(calls)]).values
        return [Outcome(o.value, o.args[1:], o.kwargs) for o in outcomes]

    def call(self, call: Call, rank: int | None = None, world: int = 1) -> Outcome:
        """With `rank`, the first argument is the function through which that rank's communicator speaks."""
        callbacks: list = []

        def number(function) -> int:
            callbacks.append(function)
            return len(callbacks) - 1

        as_rank = {} if rank is None else {"rank": rank, "world": world}
        value = self.ask("call", {"function": call.function, **as_rank}, (call.args, call.kwargs, call.cotangent), "result",
                         name=call.function, callbacks=callbacks, callback=number)
        if type(value) is not tuple or len(value) != 4 or (type(value[1]), type(value[2])) not in ((tuple, dict), (NoneType, NoneType)):
            raise self._lost(f"{call.function}: the submission's process answered out of form.", "error")
        result, args, kwargs, gradients = value
        if args is None:    # it left them as they were
            args, kwargs = call.args, call.kwargs
        args, kwargs = _with_callbacks(call.args, args), _with_callbacks(call.kwargs, kwargs)
        if call.cotangent is not None and (type(gradients) is not list):
            raise self._lost(f"{call.function}: the submission's process sent no gradients.", "error")
        return Outcome(result, args, kwargs, gradients)

    def ask(self, op: str, body: dict, value: Value, wanted: str, *, name: str, callbacks=(), callback=None,
            seconds: float | None = None) -> Value:
        """Send one request and serve callbacks until the frame `wanted` comes; its body goes to `last_body`."""
        if self._failure is not None:
            raise self._failure
        seconds = seconds or CALL_SECONDS
        start, deadline = time.monotonic(), self._deadline(min(seconds, self._left))
        self._requests += 1
        try:
            connection = self._child.connection
            if not connection.idle():
                raise ProtocolError("an answer came before the question")
            connection.send(op, {**body, "request": self._requests}, value, deadline=deadline, callback=callback)
            while True:
                got, answer, result = connection.receive(deadline=deadline)
                if answer.get("request") != self._requests:
                    raise ProtocolError("an answer to another question")
                if got == "callback":
                    self._serve_callback(answer, result, callbacks, deadline)
                elif got == "failure":
                    raise _failure(name, answer)
                elif got == wanted:
                    self.last_body = answer
                    return result
                else:
                    raise ProtocolError("an unexpected frame")
        except Deadline:
            raise self._lost(f"{name} gave no answer within {seconds:g} seconds. A loop that never ends?", "timeout") from None
        except Closed:
            child = self._child
            self._end_child()  # only then the sandbox knows whether it put an end to it, and why
            raise self._lost(f"{name} ended its process: {child.ended or 'a crash, or an exit call'}.", "error") from None
        except (ProtocolError, NotAValue) as error:
            raise self._lost(f"{name}: {error}.", "error") from None
        finally:
            self._left -= time.monotonic() - start

    def close(self) -> None:
        for other in self._others:
            other.close()
        self._end_child()

    def _end_child(self) -> None:
        if self._child is not None:
            self.peak_bytes = max(self.peak_bytes, self.server.kill(self._child))
            self._child = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, none of the submission's processes gets any time."""
        children = [remote._child for remote in (self, *self._others) if remote._child is not None]
        for child in children:
            self.server.pause(child)
        try:
            yield
        finally:
            for child in children:
                self.server.resume(child)

    # ------------------------------------------------------------ inside

    def _deadline(self, seconds: float) -> Callable[[], float]:
        """The end of `seconds` from now on. When it comes, it is put off by the time for which the child was starved."""
        child, end = self._child, time.monotonic() + seconds

        def deadline() -> float:
            if time.monotonic() < end:
                return end
            return end + min(self.server.starved(child) - self._starved, PATIENCE * seconds)
        return deadline

    def _serve_callback(self, answer: dict, args: Value, callbacks, deadline: Callable[[], float]) -> None:
        index = answer.get("function")
        if type(index) is not int or not 0 <= index < len(callbacks) or type(args) is not tuple:
            raise ProtocolError("a call of a function that was not given")
        try:
            self._child.connection.send("answer", {}, callbacks[index](*args), deadline=deadline)
        except (Deadline, ProtocolError):
            raise
        except Exception as error:
            message = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
            self._child.connection.send("raise", {"message": message}, deadline=deadline)

    def _lost(self, message: str, status: str) -> StudentError:
        self._end_child()
        self._failure = StudentError(message, status)
        return self._failure

    def _execute_cells(self) -> None:
        """Run the cells in a fresh child; a cell that hangs or kills is left out the next time."""
        self.cell_errors = {i: e for i, e in self.cell_errors.items() if i in self._hanging}
        for _ in range(len(self.cells) + 1):
            self._child, self._starved = self.server.fork(), 0.0
            index = self._run_cells()
            if index is None:
                return
            self._hanging.add(index)
            self._end_child()

    def _run_cells(self) -> int | None:
        """None when all cells have run; else the index of the cell that did not come to its end."""
        connection, index = self._child.connection, 0
        try:
            connection.send("cells", {"cells": self.cells, "skip": sorted(self._hanging), "seed": self.seed})
            deadline = self._deadline(CELL_SECONDS)
            while index < len(self.cells):
                op, body, _ = connection.receive(deadline=deadline)
                if op != "cell" or body.get("index") != index:
                    raise ProtocolError("a report on another cell")
                error = body.get("error")
                if error is not None and type(error) is not str:
                    raise ProtocolError("a malformed report on a cell")
                if error is not None:
                    self.cell_errors[index] = error[:500]
                index += 1
            return None
        except Deadline:
            self.cell_errors[index] = f"did not end within {CELL_SECONDS:g} seconds"
        except ProtocolError:
            self.cell_errors[index] = "ended its process"
        return index


def _failure(name: str, answer: dict) -> StudentError:
    message, status = answer.get("message"), answer.get("status")
    if type(message) is not str or status not in ("failed", "error"):
        raise ProtocolError("a malformed failure")
    if message == f"{name} is not written yet.":
        return NotWritten(name)
    return StudentError(message[:1000], status, own_words=True)


def _with_callbacks(sent: Value, came: Value) -> Value:
    """Functions do not travel back; put them where they were, so that arguments can be compared."""
    if type(sent) is tuple and type(came) is tuple and len(sent) == len(came):
        return tuple(a if callable(a) else b for a, b in zip(sent, came))
    if type(sent) is dict and type(came) is dict:
        return {key: value if callable(value) else came.get(key) for key, value in sent.items()}
    return came
