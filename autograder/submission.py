"""A submitted notebook, read whatever state it is in."""
from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_output

from autograder.ipynb import AGAIN, Unreadable, read_json, refuse
from course.verdict import RECEIPT

MAX_CELLS, MAX_SOURCE = 5_000, 4 << 20  # cells, characters in all of them; a lab has 150 and 100,000
MAX_TEXT, MAX_PICTURE, MAX_OUTPUTS = 20_000, 12 << 20, 40  # characters of one output, outputs of one cell
DEPTH = 32


@dataclass(frozen=True)
class CodeCell:
    """A cell to execute. `name` is its nbgrader id, or "" for a cell that the student added."""
    name: str
    source: str


def grade_id(cell: NotebookNode) -> str:
    """nbgrader's id of a cell, or ""."""
    return str(_nbgrader(cell).get("grade_id") or "")


def is_solution(cell: NotebookNode) -> bool:
    return cell.cell_type == "code" and bool(_nbgrader(cell).get("solution"))


def _nbgrader(cell: NotebookNode) -> dict:
    found = cell.get("metadata", {}).get("nbgrader", {})
    return found if isinstance(found, dict) else {}


def read_notebook(path: Path) -> NotebookNode:
    """The notebook as nbformat 4, whatever version it was saved in; cell ids may be there twice. Raises Unreadable.

    Of the outputs only what cannot run in the browser of whoever looks at it is kept: text, pictures, receipts.
    """
    path = Path(path)
    content = read_json(path)
    found = content.get("cells")
    if not isinstance(found, list) and isinstance(content.get("worksheets"), list):  # nbformat 3 and older
        sheets = [sheet.get("cells") for sheet in content["worksheets"] if isinstance(sheet, dict)]
        found = [cell for cells in sheets if isinstance(cells, list) for cell in cells]
    if not isinstance(found, list):
        version = content.get("nbformat")
        refuse(path.name, f"of notebook format {version}, which is unknown here, and has no cells; save it in JupyterLab and hand in that"
               if isinstance(version, int) else f"JSON, but not a notebook: it has no cells; {AGAIN}")
    if len(found) > MAX_CELLS:
        refuse(path.name, f"not gradable: it has {len(found):,} cells; hand in at most {MAX_CELLS:,}")
    cells, metadata = [_cell(cell, f"cell-{number}") for number, cell in enumerate(found)], content.get("metadata")
    if (size := sum(len(cell["source"]) for cell in cells)) > MAX_SOURCE:
        refuse(path.name, f"not gradable: its cells hold {size:,} characters; remove pasted data and hand in at most {MAX_SOURCE:,}")
    return nbformat.from_dict({"cells": cells, "nbformat": 4, "nbformat_minor": 5,
                               "metadata": _plain(metadata) if isinstance(metadata, dict) else {}})


def _plain(value: Any, depth: int = 0) -> Any:
    """JSON that can be written again: no half characters, not too deep."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_plain(str(k)): _plain(v, depth + 1) for k, v in value.items()} if depth < DEPTH else {}
    if isinstance(value, list):
        return [_plain(v, depth + 1) for v in value] if depth < DEPTH else []
    return value


def _text(value: Any) -> str:
    """A string, or a list of lines."""
    if isinstance(value, list):
        value = "".join(line for line in value if isinstance(line, str))
    return _plain(value) if isinstance(value, str) else ""


def _cell(found: Any, identity: str) -> dict:
    if not isinstance(found, dict):  # kept as it is: repair may recognise the text
        return {"cell_type": "raw", "id": identity, "metadata": {}, "source": _text(found)}
    kind = found.get("cell_type")
    source = _text(next((found[key] for key in ("source", "input", "code", "text") if isinstance(found.get(key), (str, list))), ""))
    if kind == "heading":
        kind, source = "markdown", "#" * (found["level"] if found.get("level") in (2, 3, 4, 5, 6) and isinstance(found["level"], int) else 1) + " " + source
    kind = {"html": "markdown", "text": "markdown"}.get(kind, kind) if isinstance(kind, str) else "raw"
    cell = {"cell_type": kind if kind in ("code", "markdown") else "raw", "id": identity, "source": source,
            "metadata": _plain(found["metadata"]) if isinstance(found.get("metadata"), dict) else {}}
    if isinstance(found.get("id"), str) and re.fullmatch(r"[\w-]{1,64}", found["id"], re.ASCII):
        cell["id"] = found["id"]
    if cell["cell_type"] == "code":
        cell |= {"execution_count": None, "outputs": _outputs(found.get("outputs"))}
    elif isinstance(found.get("attachments"), dict):
        cell["attachments"] = {_plain(k): _pictures(v) for k, v in found["attachments"].items() if isinstance(v, dict) and _pictures(v)}
    return cell


def _outputs(found: Any) -> list[NotebookNode]:
    kept = []
    for output in found if isinstance(found, list) else []:
        if not isinstance(output, dict):
            continue
        if output.get("output_type") == "stream":
            kept.append(new_output("stream", name="stderr" if output.get("name") == "stderr" else "stdout", text=_text(output.get("text"))[:MAX_TEXT]))
        elif output.get("output_type") == "error":
            lines = output.get("traceback") if isinstance(output.get("traceback"), list) else []
            kept.append(new_output("error", ename=_text(output.get("ename")), evalue=_text(output.get("evalue"))[:MAX_TEXT],
                                   traceback=[_text(line)[:MAX_TEXT] for line in lines[:MAX_OUTPUTS]]))
        elif isinstance(output.get("data"), dict) and (data := _data(output["data"])):
            kept.append(new_output("display_data", data))
    return kept[:MAX_OUTPUTS]


def _data(found: dict) -> dict:
    data = {"text/plain": _text(found["text/plain"])[:MAX_TEXT]} if "text/plain" in found else {}
    return data | _pictures(found) | ({RECEIPT: _plain(found[RECEIPT])} if RECEIPT in found else {})


def _pictures(found: dict) -> dict:
    pictures = {kind: _text(found.get(kind)) for kind in ("image/png", "image/jpeg", "image/gif", "image/webp")}
    return {kind: data for kind, data in pictures.items() if 0 < len(data) <= MAX_PICTURE and re.fullmatch(r"[\w+/=\s]*", data, re.ASCII)}
