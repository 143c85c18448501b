"""Runs in the judged process: executes a submission's cells, then answers the judge's calls.

Nothing in here is trusted by the judge. It is written so that honest code is served well: an exception, a print, a
changed default dtype cost nothing but the exercise they belong to.
"""
from __future__ import annotations

import hashlib
import linecache
import random
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autograder.protocol import Connection, ProtocolError
from course.spec.declare import SpeedTarget, declared
from course.spec.load import import_file
from course.spec.student import Call, StudentError, invoke, on_rank
from course.spec.values import NotAValue, Value, rebuild, walk


def serve(connection: Connection) -> None:
    """Answer frames until the judge closes the connection."""
    worker = Worker(connection)
    try:
        while True:
            op, body, value = connection.receive(callback=worker.callback)
            getattr(worker, f"on_{op}")(body, value)
    except ProtocolError:
        pass  # the judge has hung up


class Worker:
    def __init__(self, connection: Connection):
        self.connection = connection
        self.request = 0
        self.module = types.ModuleType("__main__")
        self.module.display = lambda *args, **kwargs: None  # a notebook has it without an import
        self.targets: dict[str, Any] = {}
        self.ready: Value = None

    def on_cells(self, body: dict, value: Value) -> None:
        """Execute the cells in order; report each one's end, so that the judge knows which one hangs."""
        sys.modules["__main__"] = self.module
        random.seed(body["seed"])
        torch.manual_seed(body["seed"])
        skip = set(body["skip"])
        for index, source in enumerate(body["cells"]):
            error = None if index in skip else self._execute(index, source)
            self.connection.send("cell", {"index": index, "error": error})

    def _execute(self, index: int, source: str) -> str | None:
        filename = f"<cell {index}>"
        # Tracebacks and Triton look for the source there; without a modification time it is never checked on disk.
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
        try:
            exec(compile(source, filename, "exec"), self.module.__dict__)
        except BaseException as error:
            return _describe(error)
        return None

    def on_call(self, body: dict, value: Value) -> None:
        """Call one function of the submission; send its result, and the arguments as they are afterwards if it changed them."""
        self.request = body["request"]
        args, kwargs, cotangent = value
        call = Call(body["function"], args, kwargs, cotangent)
        function = self.module.__dict__.get(call.function)
        try:
            if not callable(function):
                raise StudentError(f"{call.function} is not defined.", "failed")
            if "world" in body:
                post, *own = args
                outcome = on_rank(function, Call(call.function, tuple(own), kwargs), post, body["rank"], body["world"])
                outcome.args = (None, *outcome.args)
            else:
                outcome = invoke(function, call)
            if outcome.args is args and outcome.kwargs is kwargs:
                arguments = None, None
            else:
                arguments = _without_callbacks((outcome.args, outcome.kwargs))
            answer = (outcome.value, *arguments, outcome.gradients)
            self.connection.send("result", {"request": self.request}, answer)
        except (StudentError, NotAValue) as error:
            self._fail(str(error), getattr(error, "status", "failed"))
        except BaseException as error:
            self._fail(f"{call.function} raised {_describe(error)}", "error")

    def _fail(self, message: str, status: str) -> None:
        self.connection.send("failure", {"request": self.request, "message": message[:2000], "status": status})

    def callback(self, number: int):
        """A function of the judge's: calling it sends the arguments there and waits for the answer."""
        def call_judge(*args: Value) -> Value:
            self.connection.send("callback", {"request": self.request, "function": number}, args)
            op, body, value = self.connection.receive()
            if op == "raise":
                raise StudentError(body["message"], "failed")
            return value
        return call_judge

    def on_targets(self, body: dict, value: Value) -> None:
        """Load the speed targets of the visible tests."""
        self.request = body["request"]
        try:
            module = import_file(Path(body["visible"]))
        except Exception as error:
            return self._fail(f"the visible tests cannot be loaded: {_describe(error)}", "error")
        self.targets = {t.name: t for t in declared(module, hidden=False) if isinstance(t, SpeedTarget)}
        self.connection.send("loaded", {"request": body["request"]})

    def on_window(self, body: dict, value: Value) -> None:
        """One timing window: draw inputs from the seeds, work, commit to every output, hand over those picked."""
        self.request = body["request"]
        target = self.targets[body["target"]]
        function = target.baseline if body["who"] == "baseline" else self.module.__dict__.get(target.exercise)
        outputs = []
        try:
            for seed in body["seeds"]:
                inputs = target.inputs(seed)
                # "identity" measures what drawing, hashing and handing over cost without the work: its outputs are
                # the last of the window before, which look like all others
                outputs.append(self.ready if body["who"] == "identity" else target.work(function, *inputs))
            self.ready = outputs[-1]
            digests = [digest(o) for o in outputs]
        except BaseException as error:
            return self._fail(f"{target.exercise} raised {_describe(error)}", "error")
        self.connection.send("committed", {"request": self.request, "digests": digests})
        op, body, _ = self.connection.receive()
        self.connection.send("outputs", {"request": body["request"]}, [outputs[i] for i in body["picked"]])


def digest(value: Value) -> str:
    """A short hash of all numbers in a value; judge and judged compute it alike."""
    total = hashlib.blake2b(digest_size=16)
    for where, leaf in walk(value):
        total.update(where.encode())
        if isinstance(leaf, Tensor):
            data = leaf.detach().cpu().contiguous()
            total.update(f"{data.dtype}{list(data.shape)}".encode())
            total.update(memoryview(data.reshape(-1).view(torch.uint8).numpy()))
        else:
            total.update(repr(leaf).encode())
    return total.hexdigest()


def _without_callbacks(value: Value) -> Value:
    return rebuild(value, lambda leaf: None if callable(leaf) and not isinstance(leaf, Tensor) else leaf)


def _describe(error: BaseException) -> str:
    """Type, first line of the message and the line of the cell; broken exception classes are survived."""
    try:
        text = (str(error).strip().splitlines() or ["(no message)"])[0][:200]
    except BaseException:
        text = "(no message)"
    trace, line = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.startswith("<cell "):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{type(error).__name__}: {text}" + (f" (line {line} of the cell)" if line else "")
