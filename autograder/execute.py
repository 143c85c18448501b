"""Run a whole notebook as a student would, and look at what it showed."""
from __future__ import annotations

import datetime
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
import psutil
from nbformat import NotebookNode

from autograder.submission import grade_id, is_solution
from course.verdict import VERDICT

LONG_SECONDS = 5.0  # a cell that takes longer says so beforehand
ANNOUNCED = re.compile(r"\bseconds\b|\bminutes?\b|\d s\b", re.IGNORECASE)
RUNNER = """
import sys, nbformat
from nbclient import NotebookClient
path = sys.argv[1]
notebook = nbformat.read(path, as_version=4)
try:
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
finally:
    nbformat.write(notebook, path)
"""


@dataclass
class Executed:
    notebook: NotebookNode
    seconds: float
    peak_bytes: int     # of the kernel and everything beside it
    error: str
    offline: bool       # the network was really cut off


def run_notebook(notebook: NotebookNode, folder: Path) -> Executed:
    """Execute in a copy of `folder`, without GPU, and without network where the system can cut it off."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / folder.name
        place.mkdir()
        for file in folder.iterdir():
            if file.is_file() and file.suffix != ".ipynb":
                (place / file.name).write_bytes(file.read_bytes())
        path = place / "notebook.ipynb"
        nbformat.write(notebook, path)
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(folder.parent.parent), "TRAINFAST_DATA": str(Path(scratch) / "data")}
        for name in ("TRAINFAST_JUDGED", "TRITON_INTERPRET"):   # a student's kernel has neither
            environment.pop(name, None)
        offline = _network_can_be_cut()
        command = [*(_CUT if offline else []), sys.executable, "-c", RUNNER, str(path)]
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        peak = _watch_memory(process)
        output, _ = process.communicate()
        seconds = time.perf_counter() - start
        return Executed(nbformat.read(path, as_version=4), seconds, peak[0], _error(process.returncode, output), offline)


# The kernel is reached over the loopback device, which a new network namespace has, but switched off.
_CUT = ["unshare", "--net", "--map-root-user", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]


def _network_can_be_cut() -> bool:
    try:
        return subprocess.run([*_CUT, "sh", "-c", "ip link show lo | grep -q UP"], capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _watch_memory(process: subprocess.Popen) -> list[int]:
    """The largest sum of resident memory of the process and all below it, sampled ten times a second."""
    peak = [0]

    def watch():
        try:
            root = psutil.Process(process.pid)
            while process.poll() is None:
                total = 0
                for p in [root, *root.children(recursive=True)]:
                    try:
                        total += p.memory_info().rss
                    except psutil.Error:
                        pass
                peak[0] = max(peak[0], total)
                time.sleep(0.1)
        except psutil.Error:
            pass
    threading.Thread(target=watch, daemon=True).start()
    return peak


def _error(code: int, output: str) -> str:
    if code == 0:
        return ""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in output.strip().splitlines() if line.strip()]
    return (lines[-1] if lines else f"exit code {code}")[:300]


def _figures(cell: NotebookNode) -> list[str]:
    """The HTML (or "") of each output of a cell that shows a picture or an animation."""
    found = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        page = "".join(data.get("text/html", ""))
        if "image/png" in data or "image/svg+xml" in data or "<img" in page or "<svg" in page:
            found.append(page)
    return found


def failed_checks(notebook: NotebookNode) -> list[str]:
    """What the notebook's own check cells said was not so."""
    verdicts = [output.data[VERDICT] for cell in notebook.cells for output in cell.get("outputs", []) if VERDICT in output.get("data", {})]
    return [f"{verdict['exercise']}: {result['message']}" for verdict in verdicts for result in verdict["results"]
            if result["status"] not in ("passed", "deferred")]


def figures_by_exercise(notebook: NotebookNode, exercises: list[str]) -> dict[str, int]:
    """How many figures follow each exercise's cell, up to the next exercise."""
    counts, current = dict.fromkeys(exercises, 0), None
    for cell in notebook.cells:
        if is_solution(cell) and cell.cell_type == "code":
            current = grade_id(cell)
        elif current in counts:
            counts[current] += len(_figures(cell))
    return counts


def figures_without_alt(notebook: NotebookNode) -> int:
    return sum(not re.search(r"alt=['\"][^'\"]{10,}", page) for cell in notebook.cells for page in _figures(cell))


def has_claim_figure(notebook: NotebookNode) -> bool:
    """A figure in the section whose heading speaks of the claim."""
    inside = False
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (heading := re.search(r"^#{1,3} (.*)", cell.source, re.MULTILINE)):
            inside = "claim" in heading.group(1).lower()
        elif inside and cell.cell_type == "code" and _figures(cell):
            return True
    return False


def seconds_of(cell: NotebookNode) -> float:
    """How long an executed cell took; 0 for one that did not run."""
    times = cell.metadata.get("execution", {})
    begin, end = (times.get(key) for key in ("iopub.execute_input", "shell.execute_reply"))
    if not begin or not end:
        return 0.0
    return (datetime.datetime.fromisoformat(end) - datetime.datetime.fromisoformat(begin)).total_seconds()


def long_cells(notebook: NotebookNode) -> list[tuple[float, str, bool]]:
    """(seconds, beginning of the cell, announced) of each long one. Announced: its section says "about 20 seconds" before it.

    The setup cell is apart: it waits for torch, once.
    """
    found, said = [], False
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            said = bool(ANNOUNCED.search(cell.source)) or (said and not cell.source.startswith("#"))
        elif (seconds := seconds_of(cell)) > LONG_SECONDS and cell.metadata.get("tags") != ["setup"]:
            found.append((seconds, cell.source.strip().splitlines()[0][:70], said))
    return found
