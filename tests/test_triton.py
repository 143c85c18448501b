"""Triton kernels as exercises: interpreted without a GPU, compiled from a cell's source, deferred where there is no Triton."""
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch

from autograder.judge import Lab, explain_missing, judge
from autograder.sandbox import ForkServer
from autograder.source import execute, load_lab_source, reference_namespace
from autograder.submission import CodeCell
from course import kernels, verdict
from course.check import CheckFailed, _fail_under_nbgrader
from course.device import default_device
from course.spec.load import load
from course.spec.run import run
from course.spec.student import Local, Student

needs_triton = pytest.mark.skipif(kernels.without_triton() is not None, reason=kernels.MISSING)

CELL = '''\
@triton.jit
def plus_one(value):
    return value + 1


@triton.jit
def double_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ### BEGIN SOLUTION
    x = tl.load(x_ptr + i, mask=i < n)
    tl.store(y_ptr + i, 2 * plus_one(x) - 2, mask=i < n)
    ### END SOLUTION


def double(x):
    """Twice x, a tensor of numbers."""
    home, x = x.device, x.to(default_device())
    y = torch.empty_like(x)
    double_kernel[(triton.cdiv(x.numel(), 8),)](x, y, x.numel(), BLOCK=8)
    return y.to(home)
'''
SCRIPT = f'''\
# %% tags=["setup"]
import torch
from course.check import check, setup
from course.device import default_device
from course.kernels import tl, triton

setup("11_doubling")

# %%
{CELL}

# %%
check(double)
'''
VISIBLE = '''\
import torch

from course import kernels
from course.spec import assert_close, exercise, probe


@exercise("double", points=1, requires=kernels.without_triton)
def test_eleven_numbers_are_doubled(student):
    """Multiply by two."""
    x = torch.arange(11.0)
    assert_close(student.double(x), 2 * x)


@probe("double")
def some_doubles(student):
    return student.double(torch.arange(3.0))
'''
MISTAKES = '''\
from course.spec import mistake


@mistake("double", caught_by="test_eleven_numbers_are_doubled")
def squared(x):
    """You square the numbers."""
    return x**2
'''


@pytest.fixture
def kernel_lab(small_course):
    root = small_course({"doubling.py": SCRIPT, "test_visible.py": VISIBLE, "test_hidden.py": None, "mistakes.py": MISTAKES})
    return root / "solutions" / "11_doubling"


def in_a_new_process(code: str, **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"CUDA_VISIBLE_DEVICES": ""} | environment
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=clean, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


INTERPRETED = """
import os, sys
assert "triton" in sys.modules and os.environ["TRITON_INTERPRET"] == "1"
import triton, triton.language as tl
print(type(triton.jit(lambda x: x)).__name__, type(tl.sum).__name__)
"""


@needs_triton
@pytest.mark.parametrize("first", ["import course.kernels", "from course.spec.run import warm_up; warm_up()"])
def test_without_a_gpu_triton_interprets_whoever_imports_it_first(first):
    """The notebook's setup cell warms up, and torch's optimizers then import Triton."""
    assert in_a_new_process(f"{first}\n{INTERPRETED}") == "InterpretedFunction InterpretedFunction"


@needs_triton
def test_with_a_gpu_the_mode_is_left_alone(monkeypatch):
    from course.device import prepare_triton
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    prepare_triton()
    assert "TRITON_INTERPRET" not in os.environ


@needs_triton
def test_kernels_of_cells_run_in_the_reference_and_in_these_tests(kernel_lab):
    double = reference_namespace(load_lab_source(kernel_lab))["double"]
    assert torch.equal(double(torch.arange(11.0)), 2 * torch.arange(11.0))


@needs_triton
def test_kernels_of_cells_run_in_the_sandbox(kernel_lab):
    lab = Lab(kernel_lab.parents[1], "11_doubling")
    lab.__dict__["recordings"] = None
    cells = [CodeCell(cell.name, cell.source) for cell in load_lab_source(kernel_lab).of_kind("setup", "solution")]
    with ForkServer() as server:
        results = judge(lab, server, "someone", cells).tests
    assert [r.status for r in results] == ["passed"], results


def double_with(old: str, new: str):
    """The function of the cell, with a change in it."""
    names = {"torch": torch, "tl": kernels.tl, "triton": kernels.triton, "default_device": default_device}
    execute(CELL.replace(old, new), "<cell>", names)
    return names["double"]


@needs_triton
@pytest.mark.parametrize("wrong, what", [("tl.load(x_ptr + i, mask=i <= n)", "reads outside its tensors (1 of 4 places"),
                                         ("tl.load(x_ptr + i)", "reads outside its tensors (5 of 8 places"),
                                         ("tl.load(x_ptr + i - 1, mask=i < n)", "reads outside its tensors (1 of 8 places")])
def test_an_interpreted_kernel_that_leaves_its_tensors_is_stopped_and_told(wrong, what):
    """Where the result does not show it: on a GPU it is an illegal access."""
    with pytest.raises(Exception, match=re.escape(what)):
        double_with("tl.load(x_ptr + i, mask=i < n)", wrong)(torch.arange(11.0))


@needs_triton
def test_the_line_of_the_kernel_that_leaves_its_tensors_is_told(kernel_lab):
    wrong = double_with("tl.load(x_ptr + i, mask=i < n)", "tl.load(x_ptr + i)")
    result, = run(load(kernel_lab), Student(Local({"double": wrong})), seed=0)
    assert "double raised IndexError: this kernel reads outside its tensors" in result.message
    assert "in double_kernel, line" in result.message and "x = tl.load(x_ptr + i)" in result.message


@needs_triton
def test_a_kernel_may_not_write_outside_its_tensors_either():
    with pytest.raises(Exception, match="writes outside its tensors"):
        double_with("- 2, mask=i < n", "- 2")(torch.arange(11.0))


@needs_triton
def test_views_with_gaps_may_be_read_to_their_last_element():
    assert torch.equal(double_with("x_ptr + i,", "x_ptr + 3 * i,")(torch.arange(31.0)[::3]), 2 * torch.arange(0, 31.0, 3))


@needs_triton
@pytest.mark.parametrize("run_cell", [
    "from autograder.source import execute; execute(CELL, '<cell>', names)",  # the reference and its mutants
    "import autograder.worker as w; it = w.Worker(None); it.module.__dict__.update(names); "
    "error = it._execute(0, CELL); assert error is None, error; names = it.module.__dict__"])
def test_compiled_kernels_find_the_source_of_their_cell(run_cell):
    """Not interpreted; no GPU is needed to read a source."""
    code = f"""
    import torch, triton, triton.language as tl
    CELL = {CELL!r}
    names = {{"triton": triton, "tl": tl, "torch": torch}}
    {run_cell}
    print(type(names["double_kernel"]).__name__, "tl.store" in names["double_kernel"].src)
    """
    assert in_a_new_process(code, TRITON_INTERPRET="0") == "JITFunction True"


def test_without_triton_kernels_are_defined_and_their_tests_deferred(kernel_lab):
    """The notebook still runs; a launch says what to do, and neither score nor maximum knows of the test."""
    code = f"""
    import sys
    sys.modules["triton"] = None  # as on macOS: its import raises ImportError
    from pathlib import Path
    from autograder.source import load_lab_source, reference_namespace
    from course.spec.load import load
    from course.spec.run import run
    from course.spec.student import Local, Student
    import torch
    names = reference_namespace(load_lab_source(Path({str(kernel_lab)!r})))
    result, = run(load(Path({str(kernel_lab)!r})), Student(Local(names)), seed=0)
    assert (result.status, result.points, result.max_points) == ("deferred", 0, 0), result
    assert "WSL or Colab" in result.message
    try:
        names["double"](torch.ones(3))
    except RuntimeError as error:
        print(error)
    """
    assert in_a_new_process(code) == kernels.MISSING


def test_a_deferred_test_is_no_failure(kernel_lab, capsys):
    spec = load(kernel_lab)
    spec.tests[0] = replace(spec.tests[0], requires=lambda: "no such device.")
    results = run(spec, Student(Local({})), seed=0)
    assert [r.status for r in results] == ["deferred"]
    explain_missing(results, [CodeCell("double", "")], {0: "NameError"})
    assert results[0].status == "deferred"
    verdict.show("double", results)
    assert "Deferred: no such device." in capsys.readouterr().out
    try:
        _fail_under_nbgrader(results)
    except CheckFailed:
        pytest.fail("a deferred test failed its cell")
