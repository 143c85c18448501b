"""The reference kernel compiled for a GPU: the same numbers as torch, in every dtype, and at real sizes."""
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from autograder.source import load_lab_source, reference_namespace

LAB = Path(__file__).resolve().parents[2] / "solutions" / "12_normalization"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(scope="module")
def triton_layer_norm():
    return reference_namespace(load_lab_source(LAB))["triton_layer_norm"]


# bfloat16 on compute capability 7.5 is converted to float32 and back: no arithmetic in it is needed.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 1000), (4096, 1024), (64, 16384)])
def test_the_compiled_kernel_agrees_with_torch(triton_layer_norm, shape, dtype):
    torch.manual_seed(0)
    x = (3 + 2 * torch.randn(shape)).to("cuda", dtype)
    weight, bias = (torch.randn(shape[1]).to("cuda", dtype) for _ in range(2))
    expected = F.layer_norm(x.double(), shape[1:], weight.double(), bias.double())
    got = triton_layer_norm(x, weight, bias)
    assert got.dtype == dtype and got.device == x.device
    torch.testing.assert_close(got.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=max(1e-4, torch.finfo(dtype).eps))


def test_the_compiled_kernel_survives_a_large_mean(triton_layer_norm):
    x = 3000 + torch.randn(64, 4096, device="cuda")
    got = triton_layer_norm(x, torch.ones(4096, device="cuda"), torch.zeros(4096, device="cuda"))
    torch.testing.assert_close(got.double(), F.layer_norm(x.double(), (4096,)), rtol=0, atol=0.01)


def test_tensors_of_the_cpu_come_back_to_the_cpu(triton_layer_norm):
    x = torch.randn(5, 7)
    got = triton_layer_norm(x, torch.ones(7), torch.zeros(7))
    assert got.device.type == "cpu"
    torch.testing.assert_close(got, F.layer_norm(x, (7,)), rtol=1e-4, atol=1e-5)
