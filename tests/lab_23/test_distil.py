"""The two networks of lab 23, and the file with their numbers."""
from pathlib import Path

import pytest
import torch

from course import distil, models, work

FOLDER = Path(__file__).resolve().parents[2] / "solutions" / "23_distillation"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_layer_halves_the_image_and_an_answer_has_a_number_for_each_class():
    net = distil.ConvNet((3, 4, 5), classes=7).eval()
    assert [tuple(m.shape) for m in net.maps(torch.rand(2, 1, 12, 9))] == [(2, 3, 6, 5), (2, 4, 3, 3), (2, 5, 2, 2)]
    assert net(torch.rand(2, 1, 12, 9)).shape == (2, 7)


def test_what_is_saved_comes_back_in_evaluation_mode(tmp_path):
    made = distil.ConvNet((2, 3)), distil.ConvNet((2,))
    images, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 35])
    made[0](images)  # moves the running averages
    distil.save(tmp_path, *made, images, labels)
    for before, after in zip(made, distil.networks(tmp_path)):
        assert not after.training
        torch.testing.assert_close(after(images), before.eval()(images), rtol=1e-2, atol=1e-2)  # float16
    seen, known = distil.fresh_images(tmp_path)
    torch.testing.assert_close(seen, images, rtol=0, atol=1 / 255)
    assert torch.equal(known, labels)


def test_the_small_network_is_a_tenth_of_the_teacher_and_almost_as_good():
    teacher, small = distil.networks(FOLDER)
    images, labels = distil.fresh_images(FOLDER)
    assert 9 < models.n_parameters(teacher) / models.n_parameters(small) < 11
    assert 9 < work.count(teacher, images[:1]).multiply_adds / work.count(small, images[:1]).multiply_adds < 11
    with torch.no_grad():
        right = [(net(images).argmax(1) == labels).double().mean().item() for net in (teacher, small)]
    assert right[0] > 0.95 and right[1] > right[0] - 0.03
