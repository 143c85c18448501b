"""What the course has for lab 32: a vision transformer, and tensors made ready for kernels."""
import pytest
import torch

from course import kernels, models
from course.device import default_device


@pytest.mark.parametrize("patch, channels", [(7, 1), (14, 3)])
def test_a_vision_transformer_gives_logits_and_learns_every_parameter(patch, channels):
    model = models.VisionTransformer(classes=5, d=32, patch=patch, channels=channels)
    y = model(torch.randn(3, channels, 28, 28))
    y.square().sum().backward()
    assert y.shape == (3, 5) and all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_every_patch_sees_all_others():
    """The first patch's features depend on the last one's pixels, unlike in a model of text."""
    torch.manual_seed(0)
    model, x = models.VisionTransformer(d=32, layers=1), torch.randn(1, 1, 28, 28)
    seen = []
    model.norm.register_forward_hook(lambda module, inputs, output: seen.append(output[0, 0]))
    model(x)
    x[..., -1, -1] += 1
    model(x)
    assert not torch.allclose(*seen)


def test_patches_must_fill_the_image():
    with pytest.raises(ValueError, match="patches of 5"):
        models.VisionTransformer(patch=5)


def test_tensors_for_kernels_lie_one_number_after_another_on_the_device():
    a, b = kernels.ready(torch.randn(4, 6).T, torch.arange(3))
    assert a.is_contiguous() and a.shape == (6, 4) and b.dtype == torch.int64 and a.device.type == default_device().type


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is used without a GPU")
def test_the_interpreter_gets_bfloat16_as_float32():
    x = torch.randn(3).bfloat16()
    assert kernels.ready(x)[0].dtype == torch.float32 and torch.equal(kernels.ready(x)[0], x.float())
