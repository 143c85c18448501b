"""What the labs' long measurements share."""
import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from course import full_run

SCRIPT = '''\
# %% [markdown]
# def not_code(): this is prose

# %%
import math

# %%
def wanted(x):
    return math.sqrt(x)

# %%
raise SystemExit("an experiment ran")
'''


@pytest.mark.parametrize("as_notebook", [False, True])
def test_only_the_wanted_cells_run(tmp_path, as_notebook):
    folder = tmp_path / "99_topic"
    folder.mkdir()
    if as_notebook:
        cells = [{"cell_type": "code", "source": part.split("\n", 1)[1].splitlines(keepends=True)} for part in SCRIPT.split("# %%")[2:]]
        (folder / "topic.ipynb").write_text(json.dumps({"cells": cells}))
    else:
        (folder / "topic.py").write_text(SCRIPT)
    names = full_run.lab_functions(str(folder / "full_run.py"), r"import math$|def wanted\(")
    assert names["wanted"](9) == 3 and "not_code" not in names


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
