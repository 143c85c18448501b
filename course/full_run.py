"""What the labs' full_run.py scripts share: the student's functions, the interval, and the dated JSON with the results.

    LAB = lab_functions(__file__, r"import math$|def (sgd|adam)_step\\(")
    if __name__ == "__main__":
        main(__file__, escape, settle)          # python full_run.py [PART ...]
"""
from __future__ import annotations

import datetime
import json
import math
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from course import device


def lab_functions(script: str, wanted: str) -> dict:
    """The names that those code cells define that begin as the regular expression `wanted` says.

    The cells are those of the lab in the folder of the file `script`: the reference's in the course's own repository, the
    student's notebook in a student's. Importing `course.check` in such a cell runs no checks.
    """
    os.environ["TRAINFAST_JUDGED"] = "1"
    folder = Path(script).resolve().parent
    topic = folder.name.partition("_")[2]
    source, notebook = folder / f"{topic}.py", folder / f"{topic}.ipynb"
    if source.exists():
        cells = re.split(r"^# %%.*$", source.read_text(encoding="utf-8"), flags=re.MULTILINE)
    elif notebook.exists():
        cells = ["".join(c["source"]) for c in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    else:
        raise FileNotFoundError(f"neither {source.name} nor {notebook.name} is in {folder}: keep {Path(script).name} beside the notebook")
    names: dict = {}
    for cell in cells:
        if re.match(wanted, cell.lstrip(), re.MULTILINE):
            exec(cell, names)
    return names


def device_name() -> str:
    """What the results were measured on, in words: cores, architecture, widest vector unit."""
    card = device.describe()
    units = (("amx_tile", "AMX"), ("avx512f", "AVX-512"), ("avx2", "AVX2"))
    return f"{card.cores}-core {platform.machine().replace('_', '-')} CPU" + next(
        (f" with {name}" for flag, name in units if flag in card.cpu_features), "")


def interval(values: Iterable[float], digits: int = 5) -> list[float]:
    """Mean, and the ends of its 95% interval (Student's t; two values or more)."""
    values = np.asarray(values, dtype=float)
    mean, half = values.mean(), stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return [float(f"{v:.{digits}g}") for v in (mean, mean - half, mean + half)]


def main(script: str, *parts: Callable[[], dict]) -> None:
    """Run the parts named on the command line, or all, and write each one's results, dated, to full_run.json beside `script`."""
    known = {part.__name__: part for part in parts}
    unknown = [name for name in sys.argv[1:] if name not in known]
    if unknown:
        sys.exit(f"There is no part {', '.join(unknown)}. The parts: {', '.join(known)}.")
    target = Path(script).resolve().parent / "full_run.json"
    for name in sys.argv[1:] or known:
        begin = time.perf_counter()
        result = known[name]()
        results = json.loads(target.read_text()) if target.exists() else {}
        results[name] = {"date": datetime.date.today().isoformat(), "device": device_name(), "torch": torch.__version__.partition("+")[0],
                         "seconds": round(time.perf_counter() - begin), **result}
        # The innermost lists and dictionaries on a line each: a change is seen where it is.
        target.write_text(re.sub(r"[\[{][^][{}]*[]}]", lambda m: " ".join(m[0].split()), json.dumps(results, indent=1)) + "\n")
        print(f"{name}: {results[name]['seconds']} s", flush=True)
