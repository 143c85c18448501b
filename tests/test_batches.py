"""Copies of a network that train side by side are what each of them would be alone, and counted steps are right."""
import math

import pytest
import torch
import torch.nn.functional as F

from course import batches


@pytest.fixture
def task():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=g)
    return batches.Task("two clouds", x, (x[:, 0] + 0.3 * torch.randn(200, generator=g) > 0).long(), (5, 8, 2))


def test_every_task_is_centred_and_fits_its_network():
    for name in ("digits", "digits, even or odd", "mnist5k, 50% random labels", "glyphs 10, mild"):
        task = batches.tasks()[name]()
        assert task.x.shape[1] == task.widths[0] and int(task.y.max()) < task.widths[-1], name
        assert task.x.mean().abs() < 1e-3 and abs(float(task.x.std()) - 1) < 1e-3, name


def test_copies_do_not_know_each_other(task):
    alone = batches.follow(task, 16, 0.3, [5], lambda params: params, seed=1)[0]
    for step, params in enumerate(batches.sgd(task, 16, torch.tensor([0.1, 0.3]), (0, 1))):
        if step == 5:
            break
    for one, many in zip(alone, params):  # seed 1, rate 0.3 is the last of four copies
        assert torch.allclose(one[0], many[3], atol=1e-5)


def test_a_race_counts_the_steps_that_training_alone_needs(task):
    target, rates = 0.3, torch.tensor([0.05, 0.3])
    counted = batches.race(task, 32, rates, target, seeds=(0,), most=500)
    for rate, steps in zip(rates, counted[0]):
        losses = batches.follow(task, 32, float(rate), range(500), lambda p: float(batches.losses(p, task.x[None], task.y[None])[0].detach()))
        first = next(i for i, loss in enumerate(losses) if loss < target)
        assert math.isinf(steps) or abs(float(steps) - first) <= 0.06 * first + 1
    assert counted.isfinite().any()


def test_smaller_batches_need_more_steps(task):
    found = batches.best_steps(task, [128, 32, 4], batches.target_loss(task, 0.2, steps=200), seeds=(0, 1, 2))
    assert list(found) == [128, 32, 4]
    assert found[4][0].median() > found[128][0].median()


def test_squared_lengths_are_those_of_autograd(task):
    params = batches.start(task.widths, 1, 0)
    each, mean = batches.squared_norms(params, task.x, task.y)
    free = [p.clone().requires_grad_() for p in params]
    logits = F.relu(task.x @ free[0][0] + free[1][0]) @ free[2][0] + free[3][0]
    for i in (0, 7):
        grads = torch.autograd.grad(F.cross_entropy(logits[i:i + 1], task.y[i:i + 1]), free, retain_graph=True)
        assert torch.isclose(each[i], sum(g.square().sum() for g in grads), rtol=1e-4)
    whole = torch.autograd.grad(F.cross_entropy(logits, task.y), free)
    assert mean == pytest.approx(float(sum(g.square().sum() for g in whole)), rel=1e-4)
    assert batches.exact_noise_scale(params, task) == pytest.approx((float(each.mean()) - mean) / mean)


def test_a_bowl_without_noise_needs_the_fewest_steps():
    bowl = batches.NoisyBowl()
    costs = [bowl.fixed(size, price=100) for size in (16, 256, 10**6)]
    assert costs[0][1] > costs[1][1] > costs[2][1] and costs[0][2] < costs[1][2] < costs[2][2]
    assert bowl.best_fixed(100)[0] <= costs[1][0]
