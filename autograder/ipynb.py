"""The JSON in an .ipynb file; what holds none gets one clear line that says what it is instead and what to do."""
from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import NoReturn

MAX_BYTES = 200 << 20       # of a file, mostly outputs
LARGE = 8 << 20             # from here on, large outputs are cut out before the file is parsed, and the rest is limited:
MAX_PIECES = 10_000_000     # strings and lists: what looking for the outputs costs in time, a microsecond each
MAX_REST = 64 << 20         # characters
MAX_VALUES = 4_000_000      # numbers, strings, lists and dicts: what the parsed file costs in memory
LARGE_OUTPUTS = 1 << 20     # characters, of one cell

KINDS = {b"%PDF": "a PDF file", b"PK\x03\x04": "a zip archive or an Office document", b"\x1f\x8b": "a gzip archive", b"Rar!": "a rar archive",
         b"7z\xbc\xaf": "a 7z archive", b"\x89PNG": "a picture", b"\xff\xd8\xff": "a picture", b"\xd0\xcf\x11\xe0": "an Office document",
         b"{\\rtf": "a text document (RTF)", b"\x00\x05\x16\x07": "macOS's hidden companion of a file"}
AGAIN = "hand in the .ipynb file itself"
CLEAR = "clear the outputs (Edit > Clear Outputs of All Cells), save and hand it in again"
TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"?+|[\[\]]', re.DOTALL)  # all that matters for finding where a list ends


class Unreadable(Exception):
    """The file is no notebook; one line for the report says what it is instead and what to do."""


def read_json(path: Path) -> dict:
    """The JSON object in a notebook file, of which large outputs may have been left out. Raises Unreadable."""
    return _parse(path.name, _decode(path.name, _bytes(path)))


def refuse(name: str, what: str) -> NoReturn:
    raise Unreadable(f"{name} is {what}.")


def _bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            refuse(path.name, f"a folder, not a notebook; {AGAIN}")
        if path.exists() and not path.is_file():
            refuse(path.name, f"not an ordinary file; {AGAIN}")
        size = path.stat().st_size
        if size > MAX_BYTES:
            refuse(path.name, f"{size >> 20} MB large, and at most {MAX_BYTES >> 20} MB are read; {CLEAR}")
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(f"{path.name} cannot be read: {error.strerror}.") from None


def _decode(name: str, data: bytes) -> str:
    if not data.strip():
        refuse(name, "empty; save the notebook and hand it in again")
    for start, kind in KINDS.items():
        if data.startswith(start):
            refuse(name, f"{kind}, not a notebook; {AGAIN}")
    try:
        text = data.decode(json.detect_encoding(data))  # any UTF, with and without byte order mark
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")  # saved by an old editor; a notebook is ASCII almost everywhere
    head = text[:2000].lstrip("\ufeff \t\r\n")
    if head.lower().startswith(("<!doctype html", "<html", "<?xml", "<head", "<script")):
        refuse(name, "a web page (a login page, or the view of a notebook), not a notebook; download the notebook itself (File > Download)")
    if not head.startswith(("{", "<<<<<<<")):
        kind = "text" if all(c.isprintable() or c.isspace() for c in head[:200]) else "a binary file"
        refuse(name, f"{kind}, not a notebook; {AGAIN}")
    return text.lstrip("\ufeff")


def _parse(name: str, text: str) -> dict:
    size = len(text)
    cut = f"incomplete: it breaks off after {size:,} characters; save and upload the notebook again"
    if size > LARGE:
        if (pieces := text.count("[") + text.count('"') // 2) > MAX_PIECES:
            refuse(name, f"too large: {size >> 20} MB in {pieces:,} pieces; {CLEAR}")
        text = _without_large_outputs(text) or refuse(name, cut)
        values = text.count(",") + text.count("[") + text.count("{")
        if len(text) > MAX_REST or values > MAX_VALUES:
            refuse(name, f"too large even without its outputs ({len(text) >> 20} MB, {values:,} values); remove pasted data and pictures")
    try:
        return json.loads(text, parse_constant=lambda _: None, parse_float=_finite)
    except RecursionError:
        refuse(name, f"nested too deeply for a notebook; {AGAIN}")
    except json.JSONDecodeError as error:
        if marker := re.search(r"^(<{7}|={7}$|>{7})", text, re.MULTILINE):
            line = text.count("\n", 0, marker.start()) + 1
            refuse(name, f"an unresolved merge: line {line} holds git's marker {marker[1]}; choose one side of each conflict and hand it in again")
        if error.msg.startswith("Unterminated") or len(text.rstrip()) - error.pos < 6:
            refuse(name, cut)
        refuse(name, f"damaged: {error.msg} (line {error.lineno}, column {error.colno}); download or save the notebook again")
    except ValueError:  # an integer of thousands of digits
        refuse(name, f"no valid notebook: it holds a number that is too long; {AGAIN}")


def _without_large_outputs(text: str) -> str:
    """The JSON with every large "outputs" list emptied; "" if such a list never ends."""
    pieces, done, depth, start, key = [], 0, 0, 0, -1
    for token in TOKEN.finditer(text):
        at, end = token.span()
        if text[at] == '"':
            key = end if text.startswith('"outputs"', at) else -1
        elif text[at] == "[":
            if depth:
                depth += 1
            elif key >= 0 and text[key:at].strip() == ":":
                depth, start = 1, end
            key = -1
        elif depth:
            depth -= 1
            if not depth and at - start > LARGE_OUTPUTS:
                pieces.append(text[done:start])
                done = at
    return "" if depth else "".join([*pieces, text[done:]])


def _finite(digits: str) -> float | None:
    value = float(digits)
    return value if math.isfinite(value) else None
