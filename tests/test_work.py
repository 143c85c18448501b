"""Counts of work: simple functions whose work is known."""
import torch
import torch.nn.functional as F

from course import work


def test_an_addition_reads_two_tensors_and_writes_one():
    x = torch.zeros(10, 10)
    assert work.count(torch.add, x, x) == work.Work(operations=1, bytes=3 * 400, multiply_adds=0)


def test_views_are_free_and_copies_are_not():
    x = torch.zeros(10, 20)
    assert work.count(lambda x: x.T.view(20, 10)[3:].unsqueeze(0), x).operations == 0
    assert work.count(lambda x: x.T.contiguous(), x) == work.Work(1, 2 * 800, 0)


def test_a_matrix_product_counts_its_multiply_adds():
    assert work.count(torch.mm, torch.zeros(3, 4), torch.zeros(4, 5)) == work.Work(1, 4 * (12 + 20 + 15), 60)


def test_a_convolution_counts_its_multiply_adds():
    done = work.count(F.conv2d, torch.zeros(1, 2, 6, 6), torch.zeros(3, 2, 3, 3), padding=1)
    assert done.multiply_adds == 36 * 3 * 2 * 9


def test_batch_norm_in_evaluation_is_one_pass():
    x, c = torch.zeros(8, 3, 4, 4), torch.zeros(3)
    done = work.count(F.batch_norm, x, c, c + 1)
    assert done.operations == 1 and done.bytes >= 2 * x.nbytes
