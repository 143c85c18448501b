"""What the labs' long measurements share."""
import json
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from course import full_run

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = '''\
# %% [markdown]
# def wanted_not(): this is prose

# %% tags=["setup"]
import math
from course.check import check, setup
setup("99_topic")

# %%
# A comment of the student's.
def wanted(x):
    return math.sqrt(x)

# %%
check(wanted)

# %%
raise SystemExit("an experiment ran")
'''


def as_notebook(script: str) -> str:
    """With the line for Colab that a student's setup cell has."""
    heads, texts = zip(*(part.split("\n", 1) for part in script.split("# %%")[1:]))
    cells = [{"cell_type": "markdown" if "markdown" in head else "code", "metadata": {"tags": ["setup"] * ("setup" in head)},
              "source": ("if False:\n    %pip install trainfast\n" * ("setup" in head) + text).splitlines(keepends=True)}
             for head, text in zip(heads, texts)]
    return json.dumps({"cells": cells})


@pytest.mark.parametrize("kind", ["script", "notebook"])
def test_the_setup_and_the_wanted_cells_run_and_no_others(tmp_path, kind):
    folder = tmp_path / "99_topic"
    folder.mkdir()
    if kind == "notebook":
        (folder / "topic.ipynb").write_text(as_notebook(SCRIPT))
    else:
        (folder / "topic.py").write_text(SCRIPT)
    names = full_run.lab_functions(str(folder / "full_run.py"), r"def wanted")
    assert names["wanted"](9) == 3 and "wanted_not" not in names


@pytest.mark.parametrize("script", sorted(ROOT.glob("labs/*/full_run.py")), ids=lambda path: path.parent.name)
def test_a_student_has_a_full_run_that_finds_its_functions(script, monkeypatch):
    """In the student's folder, where the notebook's functions are still to be written."""
    monkeypatch.syspath_prepend(str(script.parent))
    monkeypatch.delitem(sys.modules, "train_zero", raising=False)
    runpy.run_path(str(script), run_name="imported")


def test_a_script_without_its_notebook_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="beside the notebook"):
        full_run.lab_functions(str(tmp_path / "full_run.py"), "def")


@settings(max_examples=30, deadline=None, database=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9), st.floats(0.1, 10))
def test_the_interval_scales_with_its_values(values, factor):
    mean, low, high = full_run.interval(values, 12)
    assert low <= mean + 1e-6 and mean <= high + 1e-6 and mean == pytest.approx(np.mean(values), abs=1e-6)
    assert full_run.interval([factor * v for v in values], 12) == pytest.approx([factor * v for v in (mean, low, high)], rel=1e-6, abs=1e-4)


def test_a_part_is_written_dated_and_leaves_the_others(tmp_path, monkeypatch, capsys):
    (tmp_path / "full_run.json").write_text('{"other": {"value": 1}}')
    monkeypatch.setattr("sys.argv", ["full_run.py", "part"])

    def part():
        return {"values": [1, 2, 3]}

    full_run.main(str(tmp_path / "full_run.py"), part)
    written = json.loads((tmp_path / "full_run.json").read_text())
    assert written["other"] == {"value": 1} and written["part"]["values"] == [1, 2, 3] and {"date", "device", "torch", "seconds"} <= set(written["part"])
    monkeypatch.setattr("sys.argv", ["full_run.py", "prat"])
    with pytest.raises(SystemExit, match="no part prat. The parts: part"):
        full_run.main(str(tmp_path / "full_run.py"), part)


def test_reading_the_functions_leaves_checks_as_they_were(tmp_path, monkeypatch):
    monkeypatch.delenv("TRAINFAST_JUDGED", raising=False)
    folder = tmp_path / "99_topic"
    folder.mkdir()
    (folder / "topic.py").write_text(SCRIPT)
    full_run.lab_functions(str(folder / "full_run.py"), r"def wanted")
    assert "TRAINFAST_JUDGED" not in os.environ
