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
from torch import Tensor

from course.spec.values import NotAValue, Value, pack, unpack

MAGIC, VERSION = b"TFJ", 1
HEADER = struct.Struct(">3sBIQ")       # magic, version, length of the JSON, length of the tensors
MAX_JSON, MAX_TENSORS = 8 << 20, 1 << 30
CODES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3",
         torch.float8_e5m2: "F8_E5M2", torch.complex64: "C64", torch.int64: "I64", torch.int32: "I32", torch.int16: "I16",
         torch.int8: "I8", torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL"}
UNKNOWN_TO_NUMPY = {torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.uint8, torch.float8_e5m2: torch.uint8}


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
        self._came = bytearray()    # and not yet read

    def send(self, op: str, body: dict[str, Any] | None = None, value: Value = None, *, deadline: Ends = None,
             callback: Callable[[Callable], int] | None = None) -> None:
        """Send one frame. `deadline` is on time.monotonic's clock; raises Deadline, Closed, or NotAValue."""
        skeleton, tensors = pack(value, callback)
        blob = encode_tensors(tensors)
        text = json.dumps({"op": op, **(body or {}), "value": skeleton}).encode()
        if len(text) > MAX_JSON or len(blob) > MAX_TENSORS:
            raise NotAValue(f"{(len(text) + len(blob)) >> 20} MiB in one value; at most {MAX_TENSORS >> 20} MiB are carried")
        try:
            head = HEADER.pack(MAGIC, VERSION, len(text), len(blob)) + text
            for part in ([head + blob] if len(blob) < 1 << 16 else [head, blob]):   # a short frame wakes its reader once
                self._arm(deadline)
                self.sock.sendall(part)
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
        if self._came:
            return False
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
        # A long frame grows as it arrives: a mere announcement costs no memory.
        while len(self._came) < length:
            self._came += self._receive(min(max(length - len(self._came), 1 << 16), 1 << 20), deadline)
        data = bytes(memoryview(self._came)[:length])
        del self._came[:length]
        return data

    def _receive(self, most: int, deadline: Ends) -> bytes:
        while True:
            try:
                self._arm(deadline)
                got = self.sock.recv(most)
                break
            except TimeoutError:    # and the deadline may have been put off meanwhile
                continue
            except BlockingIOError:
                raise Deadline from None
            except OSError as error:
                raise Closed(str(error)) from None
        if not got:
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
    # Written here: the library's own writer takes five times as long for small tensors, and there are thousands of calls.
    header, parts, end = {}, [], 0
    for i, tensor in enumerate(tensors):
        if tensor.dtype not in CODES:
            raise NotAValue(f"a tensor that cannot be carried (dtype {tensor.dtype})")
        try:
            plain = tensor.detach().view(UNKNOWN_TO_NUMPY[tensor.dtype]) if tensor.dtype in UNKNOWN_TO_NUMPY else tensor
            parts.append(plain.numpy(force=True).tobytes())
        except Exception as error:
            raise NotAValue(f"a tensor that cannot be carried ({type(error).__name__}: {str(error)[:100]})") from None
        begin, end = end, end + len(parts[-1])
        header[str(i)] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *parts])


def decode_tensors(blob: bytes) -> list[Tensor]:
    """The inverse of `encode_tensors`. Raises ProtocolError for bytes that are not safetensors."""
    if not blob:
        return []
    try:
        named = load_tensors(blob)
        return [named[str(i)] for i in range(len(named))]
    except Exception as error:
        raise ProtocolError(f"tensors that cannot be read ({type(error).__name__})") from None
