"""The frames between the judge and the judged. PROTOCOL.md describes them.

A frame is a fixed header, a JSON object and a safetensors blob. Nothing is ever unpickled or evaluated; every length
is checked before anything is read, and a frame that breaks a rule is a ProtocolError, which costs its sender the
exercise and nobody else anything.
"""
from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from course.spec.values import NotAValue, Value, pack, unpack

MAGIC, VERSION = b"TFJ", 1
HEADER = struct.Struct(">3sBIQ")       # magic, version, length of the JSON, length of the tensors
MAX_JSON, MAX_TENSORS = 8 << 20, 1 << 30


Ends = float | Callable[[], float] | None   # on the clock time.monotonic(); a function's deadline may move


class ProtocolError(Exception):
    """The other side sent something that is no frame, or not the frame that was due."""


class Closed(ProtocolError):
    """The other side closed the connection, which a process does when it dies."""


class Deadline(Exception):
    """The time for an answer ran out."""


class Connection:
    """Frames over a stream socket. `limit` caps the tensors' bytes of one incoming frame."""

    def __init__(self, sock: socket.socket, limit: int = MAX_TENSORS):
        self.sock, self.limit = sock, limit

    def send(self, op: str, body: dict[str, Any] | None = None, value: Value = None, *, deadline: Ends = None,
             callback: Callable[[Callable], int] | None = None) -> None:
        """Send one frame. `deadline` is on time.monotonic's clock; raises Deadline, Closed, or NotAValue."""
        skeleton, tensors = pack(value, callback)
        blob = encode_tensors(tensors)
        text = json.dumps({"op": op, **(body or {}), "value": skeleton}).encode()
        if len(text) > MAX_JSON or len(blob) > MAX_TENSORS:
            raise NotAValue(f"{(len(text) + len(blob)) >> 20} MiB in one value; at most {MAX_TENSORS >> 20} MiB are carried")
        try:
            self._arm(deadline)
            self.sock.sendall(HEADER.pack(MAGIC, VERSION, len(text), len(blob)) + text)
            if blob:
                self._arm(deadline)
                self.sock.sendall(blob)
        except (TimeoutError, BlockingIOError):
            raise Deadline from None
        except OSError as error:
            raise Closed(str(error)) from None

    def receive(self, *, deadline: Ends = None,
                callback: Callable[[int], Callable] | None = None) -> tuple[str, dict[str, Any], Value]:
        """The next frame's operation, body and value. Raises Deadline, Closed or ProtocolError."""
        magic, version, text_length, blob_length = HEADER.unpack(self._read(HEADER.size, deadline))
        if magic != MAGIC or version != VERSION:
            raise ProtocolError("what arrived is no frame of this protocol's version")
        if text_length > MAX_JSON or blob_length > self.limit:
            raise ProtocolError(f"a frame announces {(text_length + blob_length) >> 20} MiB; at most {self.limit >> 20} MiB are read")
        text = self._read(text_length, deadline)
        blob = self._read(blob_length, deadline)
        try:
            body = json.loads(text)
        except (ValueError, RecursionError):
            raise ProtocolError("a frame holds no valid JSON") from None
        if type(body) is not dict or type(body.get("op")) is not str:
            raise ProtocolError("a frame without an operation")
        try:
            value = unpack(body.pop("value", None), decode_tensors(blob), callback)
        except (NotAValue, RecursionError) as error:
            raise ProtocolError(str(error)) from None
        return body.pop("op"), body, value

    def idle(self) -> bool:
        """True if nothing has arrived that nobody asked for."""
        try:
            self.sock.settimeout(0)
            return self.sock.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return True
        except OSError:
            return True  # closed: the next receive says so

    def close(self) -> None:
        self.sock.close()

    def _read(self, length: int, deadline: Ends) -> bytes:
        data = bytearray(length) if length <= 1 << 20 else bytearray()
        if len(data) == length:
            view, done = memoryview(data), 0
            while done < length:
                done += self._receive_into(view[done:], deadline)
            return bytes(data)
        # A long frame grows as it arrives: a mere announcement costs no memory.
        chunk = bytearray(1 << 20)
        while len(data) < length:
            got = self._receive_into(memoryview(chunk)[:min(len(chunk), length - len(data))], deadline)
            data += chunk[:got]
        return bytes(data)

    def _receive_into(self, view: memoryview, deadline: Ends) -> int:
        while True:
            try:
                self._arm(deadline)
                got = self.sock.recv_into(view)
                break
            except TimeoutError:    # and the deadline may have been put off meanwhile
                continue
            except BlockingIOError:
                raise Deadline from None
            except OSError as error:
                raise Closed(str(error)) from None
        if got == 0:
            raise Closed("the connection was closed")
        return got

    def _arm(self, deadline: Ends) -> None:
        """Wait until the deadline, or, where it has passed, for nothing: what has come is read by a late judge too."""
        if callable(deadline):
            deadline = deadline()
        self.sock.settimeout(None if deadline is None else max(0.0, deadline - time.monotonic()))


def encode_tensors(tensors: list[Tensor]) -> bytes:
    """safetensors bytes of dense copies on the CPU. Raises NotAValue for kinds of tensors it cannot carry."""
    if not tensors:
        return b""
    try:
        return save_tensors({str(i): t.detach().to("cpu").clone(memory_format=torch.contiguous_format)
                             for i, t in enumerate(tensors)})
    except Exception as error:
        raise NotAValue(f"a tensor that cannot be carried ({type(error).__name__}: {str(error)[:100]})") from None


def decode_tensors(blob: bytes) -> list[Tensor]:
    """The inverse of `encode_tensors`. Raises ProtocolError for bytes that are not safetensors."""
    if not blob:
        return []
    try:
        named = load_tensors(blob)
        return [named[str(i)] for i in range(len(named))]
    except Exception as error:
        raise ProtocolError(f"tensors that cannot be read ({type(error).__name__})") from None
