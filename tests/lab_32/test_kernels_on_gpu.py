"""The reference kernels compiled for a GPU: the lab's own tests, and torch's numbers in every dtype and at real sizes."""
from pathlib import Path

import pytest
import torch

from autograder.source import load_lab_source, reference_namespace
from course.spec.load import load
from course.spec.run import run
from course.spec.student import Local, Student

LAB = Path(__file__).resolve().parents[2] / "solutions" / "32_block_sparsity"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]     # before compute capability 8.0 bfloat16 is computed in float32
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
KERNELS = ("block_sparse_matmul", "sampled_matmul")


@pytest.fixture(scope="module")
def lab():
    return reference_namespace(load_lab_source(LAB))


@pytest.mark.parametrize("exercise", KERNELS)
def test_the_labs_own_tests_pass_compiled(lab, exercise):
    """Every one that also runs in the interpreter."""
    student = Student(Local(lab))
    results = run(load(LAB, hidden=True), student, seed=0, reference=student, exercises=[exercise])
    assert [r.message for r in results if r.status != "passed"] == [] and len(results) >= 5


def problem(lab, m, k, n, b, dtype):
    torch.manual_seed(0)
    grid = torch.rand(-(-m // b), -(-k // b)) < 0.3
    plain = torch.randn(m, k) * grid.repeat_interleave(b, 0).repeat_interleave(b, 1)[:m, :k] / k**0.5
    w = {name: t.cuda() if isinstance(t, torch.Tensor) else t for name, t in lab["to_bsr"](plain.to(dtype), b).items()}
    return plain.to(dtype).cuda(), w, torch.randn(k, n).to("cuda", dtype)


def assert_near(got, expected, dtype):
    assert got.dtype == dtype and got.device.type == "cuda"
    torch.testing.assert_close(got.double(), expected, rtol=TOLERANCE[dtype], atol=2 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m, k, n, b", [(64, 64, 16, 16), (100, 77, 33, 32), (1000, 1500, 300, 64), (1, 1, 1, 16)])
def test_the_compiled_product_agrees_with_torch(lab, m, k, n, b, dtype):
    plain, w, x = problem(lab, m, k, n, b, dtype)
    assert_near(lab["block_sparse_matmul"](w, x), plain.double() @ x.double(), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m, k, n, b", [(64, 64, 16, 16), (100, 77, 33, 32), (1000, 1500, 300, 64)])
def test_the_compiled_gradient_agrees_with_torch(lab, m, k, n, b, dtype):
    plain, w, x = problem(lab, m, k, n, b, dtype)
    g = torch.randn(m, n).to("cuda", dtype) / n**0.5
    dense = torch.zeros(-(-m // b) * b, -(-k // b) * b, device="cuda", dtype=torch.float64)
    dense[:m, :k] = g.double() @ x.double().T
    rows = torch.repeat_interleave(torch.arange(len(w["starts"]) - 1, device="cuda"), w["starts"].diff())
    expected = dense.unflatten(0, (-1, b)).unflatten(2, (-1, b)).transpose(1, 2)[rows, w["columns"]]
    assert_near(lab["sampled_matmul"](g, x, w), expected, dtype)


def test_float32_is_not_rounded_to_tf32(lab):
    plain, w, x = problem(lab, 512, 512, 64, 64, torch.float32)
    expected = plain.double() @ x.double()
    assert (lab["block_sparse_matmul"](w, x).double() - expected).abs().max() < 1e-5


def test_tensors_of_the_cpu_come_back_to_the_cpu(lab):
    w, x = lab["to_bsr"](torch.randn(20, 33), 16), torch.randn(33, 5)
    got = lab["block_sparse_matmul"](w, x)
    assert got.device.type == "cpu"
    torch.testing.assert_close(got, lab["bsr_matmul"](w, x), rtol=1e-4, atol=1e-4)
