"""What the labs' full_run.py scripts share: the student's functions, the interval, and the dated JSON with the results.

    LAB = lab_functions(__file__, r"def (sgd|adam)_step\\(")
    if __name__ == "__main__":
        main(__file__, escape, settle)          # python full_run.py [PART ...]
"""
from __future__ import annotations

import datetime
import json
import math
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from IPython.core.inputtransformer2 import TransformerManager
from scipy import stats

from course import device
from course.check import judged


def lab_functions(script: str, wanted: str) -> dict:
    """The names that the lab's setup cell defines, and the code cells in which a line begins as the regular expression
    `wanted` says.

    The cells are those of the lab in the folder of the file `script`: the reference's in the course's own repository, the
    student's notebook in a student's. What they call to be checked does nothing here.
    """
    names: dict = {}
    with judged():
        for is_setup, source in _code_cells(Path(script).resolve()):
            if is_setup or re.search(rf"^(?:{wanted})", source, re.MULTILINE):
                exec(TransformerManager().transform_cell(source), names)  # a student's setup cell has a %pip for Colab
    return names


def _code_cells(script: Path) -> Iterator[tuple[bool, str]]:
    """(it is the setup cell, source) of each code cell."""
    topic = script.parent.name.partition("_")[2]
    source, notebook = script.with_name(f"{topic}.py"), script.with_name(f"{topic}.ipynb")
    if source.exists():
        _, *parts = re.split(r"^# %%(.*)$", source.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for head, text in zip(parts[::2], parts[1::2]):
            if "[markdown]" not in head:
                yield 'tags=["setup"]' in head, text
    elif notebook.exists():
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                yield "setup" in cell["metadata"].get("tags", []), "".join(cell["source"])
    else:
        raise FileNotFoundError(f"neither {source.name} nor {notebook.name} is in {script.parent}: keep {script.name} beside the notebook")


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
