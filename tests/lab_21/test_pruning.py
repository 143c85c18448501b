"""The lab's network as a dict of tensors, and its optimizer with masks (course/pruning.py)."""
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from course import data, models, pruning, train, work

LAB = Path(__file__).resolve().parents[2] / "solutions" / "21_pruning"
close = torch.testing.assert_close


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = models.ConvNet((3, 4), classes=5)
    for norm in net.norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return net.eval()


def small_images():
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(40, 1, 8, 8, generator=g), torch.randint(5, (40,), generator=g)
    return data.Images(x[:30], y[:30], x[30:], y[30:], 5, "noise")


def test_a_state_computes_what_its_module_computes(net):
    x = torch.rand(2, 1, 8, 8)
    state = pruning.state_of(net)
    close(pruning.forward(state, x), net(x))
    close(pruning.module(state)(x), net(x))


def test_a_gate_of_zero_masks_a_filter_as_gamma_and_beta_of_zero_do(net):
    x, state, gate = torch.rand(2, 1, 8, 8), pruning.state_of(net), torch.tensor([1.0, 0.0, 1.0])
    masked = state | {name: state[name] * gate for name in ("norms.0.weight", "norms.0.bias")}
    close(pruning.forward(state, x, [gate, torch.ones(4)]), pruning.forward(masked, x))


def test_multiply_adds_are_those_that_torch_counts(net):
    state = pruning.state_of(net)
    assert pruning.multiply_adds(state, side=8) == work.count(net, torch.rand(1, 1, 8, 8)).multiply_adds


def test_weights_come_layer_by_layer_and_masks_in_their_order(net):
    state = pruning.state_of(net)
    assert list(pruning.weights(state)) == ["convs.0.weight", "convs.1.weight", "head.weight"]
    masked = pruning.masked(state, [torch.zeros_like(w) if i == 1 else torch.ones_like(w) for i, w in enumerate(pruning.weights(state).values())])
    assert masked["convs.1.weight"].count_nonzero() == 0
    close({name: t for name, t in masked.items() if name != "convs.1.weight"}, {name: t for name, t in state.items() if name != "convs.1.weight"})


def test_gradients_are_those_of_each_batch(net):
    state, images = pruning.state_of(net), small_images()
    head = state["head.weight"].clone().requires_grad_()
    F.cross_entropy(pruning.forward(state | {"head.weight": head}, images.train_x[10:20]), images.train_y[10:20]).backward()
    found = pruning.gradients(state, images.train_x, images.train_y, batch=10)
    assert [list(g.shape) for g in found] == [[3, 3, 1, 3, 3], [3, 4, 3, 3, 3], [3, 5, 4]]
    close(found[2][1], head.grad)


def test_the_optimizer_asks_for_masks_and_hands_them_to_the_weights_only(net):
    asked, seen = [], []

    def masks_at(t, weights):
        asked.append((t, [list(w.shape) for w in weights]))
        return [torch.zeros_like(w, dtype=torch.bool) for w in weights] if t == 1 else None

    def step(param, grad, state, mask, lr, momentum):
        seen.append((param.ndim, bool(mask.all()), lr, momentum, state.get("t", 0)))
        return param * mask, {"t": state.get("t", 0) + 1}
    train.train(net, small_images(), optimizer=pruning.optimizer(step, masks_at, momentum=0.5), steps=3, lr=lambda t: 0.1 * t, device="cpu", progress=False)
    assert [t for t, _ in asked] == [0, 1, 2] and asked[0][1] == [[3, 1, 3, 3], [4, 3, 3, 3], [5, 4]]
    assert all(whole == (ndim == 1 or t == 0) and lr == 0.1 * t and momentum == 0.5 for ndim, whole, lr, momentum, t in seen)
    assert all(w.count_nonzero() == 0 for w in pruning.weights(pruning.state_of(net)).values())


def test_the_committed_network_reads_nearly_every_image():
    state, images = pruning.network(LAB), pruning.glyphs(1200, seed=1)
    assert pruning.depth(state) == 3 and images.train_x.shape == (1000, 1, 14, 14)
    assert pruning.accuracy(state, images.train_x, images.train_y) > 0.96
