"""A network as a stack of vectors: the loss and gradients are autograd's, whole or layer by layer."""
import pytest
import torch

from course import layers


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    return tuple(torch.randint(0, 20, (2, 8), generator=g) for _ in "xy")


@pytest.mark.parametrize("tied", [False, True])
def test_hooks_bring_the_gradient_of_every_layer_once(batch, tied):
    net = layers.transformer(20, 16, 2, 2, 8, tied=tied)
    params = [v + 0.01 for v in net.vectors()]
    found = []
    backward = net.backward(*batch)
    backward(params, lambda i, grad: found.append((i, grad)))
    assert sorted(i for i, _ in found) == [0, 1, 2, 3] and found[0][0] == 3 and found[-1][0] == 0
    assert torch.equal(torch.cat(net.vectors()), torch.cat(params))
    expected = torch.autograd.grad(net.loss(*batch), [p for group in net.groups for p in group])
    got = torch.cat([grad for _, grad in sorted(found, key=lambda item: item[0])])
    torch.testing.assert_close(got, torch.cat([g.flatten() for g in expected]))
    torch.testing.assert_close(backward.loss, net.loss(*batch).detach())


def test_layer_by_layer_is_the_same(batch):
    net = layers.transformer(20, 16, 2, 2, 8)
    params, (forward, backward), grads = net.vectors(), net.pieces(*batch), {}
    inputs, x, grad = [], batch[0], None
    for i, weight in enumerate(params):
        inputs.append(x)
        x = forward(i, weight, x)
    for i in reversed(range(len(params))):
        grad, grads[i] = backward(i, params[i], inputs[i], grad)
    whole = {}
    net.backward(*batch)(params, lambda i, g: whole.update({i: g}))
    torch.testing.assert_close(x, net.loss(*batch).detach())
    for i in grads:
        torch.testing.assert_close(grads[i], whole[i])


def test_single_has_a_layer_for_each_tensor():
    net = layers.transformer(20, 16, 1, 2, 8)
    single = net.single()
    assert sum(single.sizes) == sum(net.sizes) and len(single.sizes) > len(net.sizes)
