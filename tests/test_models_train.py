"""Facts about the networks and about the one training loop."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from course import data, models
from course.train import History, accuracy, evaluate, train

FEW = settings(max_examples=15, deadline=None, database=None)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small work is as fast on one thread, and does not crawl when the other core is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sgd_step(param, grad, state, lr=0.05):
    return param - lr * grad, state


def momentum_step(param, grad, state, lr=0.05, mu=0.9):
    v = mu * state["v"] + grad if state else grad
    return param - lr * v, {"v": v}


def mlp(seed=0, widths=(64, 32, 10), **options):
    torch.manual_seed(seed)
    return models.MLP(widths, **options)


@pytest.fixture(scope="module")
def digits():
    return data.digits()


# --- models ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("size", [8, 28])
@pytest.mark.parametrize("norm", [True, False])
def test_the_convnet_takes_small_and_large_images(size, norm):
    net = models.ConvNet(classes=26, in_channels=3, norm=norm)
    assert net(torch.randn(5, 3, size, size)).shape == (5, 26)
    assert any(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == norm


def test_the_convnet_halves_the_image_between_convolutions():
    sizes = []
    net = models.ConvNet()
    for conv in net.convs:
        conv.register_forward_hook(lambda m, i, o: sizes.append(tuple(o.shape[1:])))
    net(torch.randn(1, 1, 28, 28))
    assert sizes == [(32, 28, 28), (64, 14, 14), (128, 7, 7)]


@FEW
@given(widths=st.lists(st.integers(1, 9), min_size=2, max_size=5))
def test_an_mlp_has_one_matrix_and_bias_for_each_pair_of_widths(widths):
    net = models.MLP(widths)
    assert net(torch.randn(3, 1, widths[0])).shape == (3, widths[-1])
    assert models.n_parameters(net) == sum(i * o + o for i, o in zip(widths, widths[1:]))


def test_an_mlp_uses_its_activation_and_norm_in_hidden_layers_only():
    net = mlp(activation=lambda x: 0 * x, norm=nn.LayerNorm)
    assert torch.equal(net(torch.randn(4, 64)), net.linears[-1].bias.expand(4, 10))
    assert [type(n) for n in net.norms] == [nn.LayerNorm]
    assert (mlp(norm=lambda width: nn.Threshold(1e9, 0.0))(torch.ones(2, 64)) == mlp().linears[-1].bias).all()
    with pytest.raises(ValueError, match="input and an output"):
        models.MLP([3])


@pytest.mark.parametrize("norm", ["pre", "post"])
@FEW
@given(place=st.integers(0, 15), token=st.integers(0, 255))
def test_the_transformer_does_not_look_ahead(norm, place, token):
    torch.manual_seed(0)
    net = models.Transformer(d=16, layers=2, heads=2, length=16, norm=norm)
    tokens = torch.arange(16)[None] * 7
    changed = tokens.clone()
    changed[0, place] = token
    with torch.no_grad():
        same = (net(tokens) == net(changed)).all(-1)[0]
    assert same[:place].all()
    assert same[place:].all() == (token == 7 * place)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_fresh_transformer_knows_nothing(norm):
    torch.manual_seed(0)
    net = models.Transformer(vocab=100, norm=norm)
    tokens = torch.randint(100, (8, 128), dtype=torch.uint8)
    loss, _ = evaluate(net, tokens[:, :-1], tokens[:, 1:].long())
    assert abs(loss - math.log(100)) < 0.15


def test_what_a_transformer_adds_to_its_residual_sum_starts_smaller_the_deeper_it_is():
    for layers in (2, 8):
        net = models.Transformer(layers=layers)
        for block in net.blocks:
            assert block.out.weight.std().item() == pytest.approx(0.02 / (2 * layers) ** 0.5, rel=0.1)
            assert block.up.weight.std().item() == pytest.approx(0.02, rel=0.1) and not block.up.bias.any()


def test_the_transformer_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="at most 8"):
        models.Transformer(length=8)(torch.zeros(1, 9, dtype=torch.long))
    with pytest.raises(ValueError, match="heads"):
        models.Transformer(d=10, heads=4)
    with pytest.raises(ValueError, match="norm"):
        models.Transformer(norm="middle")


# --- training --------------------------------------------------------------------------------------------------------

def test_a_step_function_trains_exactly_like_torchs_optimizer(digits):
    for step, factory in ((sgd_step, partial(torch.optim.SGD, lr=0.05)),
                          (momentum_step, partial(torch.optim.SGD, lr=0.05, momentum=0.9))):
        ours = train(mlp(), digits, optimizer=step, steps=50, device="cpu")
        theirs = train(mlp(), digits, optimizer=factory, steps=50, device="cpu")
        torch.testing.assert_close(ours.losses, theirs.losses, rtol=1e-4, atol=1e-5)
        assert ours.losses[-1] < ours.losses[0]


def test_each_parameter_has_a_state_of_its_own_that_starts_empty(digits):
    seen = []

    def count(param, grad, state):
        seen.append((tuple(param.shape), state.get("t", 0)))
        assert state.get("shape", tuple(param.shape)) == tuple(param.shape) == tuple(grad.shape)
        return param, {"t": state.get("t", 0) + 1, "shape": tuple(param.shape)}

    train(mlp(), digits, optimizer=count, steps=3)
    assert [t for _, t in seen] == [0] * 4 + [1] * 4 + [2] * 4


def test_a_step_function_that_forgets_the_state_gets_a_sentence(digits):
    def forgetful_step(param, grad, state):
        return param - grad
    with pytest.raises(TypeError, match=r"forgetful_step must return \(new parameter, new state\)"):
        train(mlp(), digits, optimizer=forgetful_step, steps=1)
    with pytest.raises(TypeError, match="not NoneType"):
        train(mlp(), digits, optimizer=lambda param, grad, state: None, steps=1)


@pytest.mark.parametrize("optimizer", [sgd_step, torch.optim.SGD])
def test_the_learning_rate_may_be_a_number_or_a_function_of_the_step(digits, optimizer):
    asked = []
    schedule = lambda i: (asked.append(i), 0.1 if i < 10 else 0.0)[1]
    net = mlp()
    history = train(net, digits, optimizer=optimizer, steps=15, lr=schedule)
    assert asked == list(range(15))
    stopped = mlp()
    short = train(stopped, digits, optimizer=optimizer, steps=10, lr=0.1)
    assert torch.equal(history.losses[:10], short.losses)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), stopped.parameters()))


def test_the_same_seed_gives_the_same_history_and_leaves_the_callers_random_numbers_alone(digits):
    def run(seed, outside):
        net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), mlp())
        torch.manual_seed(outside)
        losses = train(net, digits, steps=20, seed=seed).losses
        after = torch.rand(3)
        torch.manual_seed(outside)
        assert torch.equal(after, torch.rand(3))
        return losses
    first, again, other = run(0, outside=7), run(0, outside=8), run(1, outside=7)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_an_epoch_shows_every_example_once():
    n = 60
    d = data.Images(torch.arange(n).float().view(n, 1, 1, 1), torch.zeros(n, dtype=torch.long), torch.zeros(1, 1, 1, 1),
                    torch.zeros(1, dtype=torch.long), 2, "counting")
    seen = []

    class Spy(nn.Linear):
        def forward(self, x):
            if self.training:
                seen.extend(x.flatten().int().tolist())
            return super().forward(x.flatten(1))

    train(Spy(1, 2), d, epochs=2, batch_size=10)
    assert sorted(seen[:n]) == sorted(seen[n:]) == list(range(n)) and seen[:n] != seen[n:]


@FEW
@given(steps=st.integers(1, 12), every=st.integers(1, 15))
def test_evaluations_come_every_so_many_steps_and_at_the_end(steps, every):
    d = data.Images(torch.rand(20, 1, 2, 2), torch.arange(20) % 2, torch.rand(8, 1, 2, 2), torch.arange(8) % 2, 2, "tiny")
    h = train(mlp(widths=(4, 2)), d, steps=steps, eval_every=every, batch_size=5)
    assert len(h.losses) == steps
    assert h.eval_steps.tolist() == sorted({*range(every, steps + 1, every), steps})
    assert len(h.accuracy) == len(h.eval_losses) == len(h.eval_seconds) == len(h.eval_steps)
    assert (h.eval_seconds.diff() > 0).all() and 0 < h.eval_seconds[-1] <= h.seconds


def test_an_interrupted_run_keeps_its_history(digits):
    calls = iter(range(1000))

    def impatient(param, grad, state):
        if next(calls) == 4 * 7:  # four parameters a step
            raise KeyboardInterrupt
        return param - 0.1 * grad, state

    h = train(mlp(), digits, optimizer=impatient, steps=50, eval_every=5)
    assert h.interrupted and "interrupted" in repr(h)
    assert len(h.losses) == 7 and h.eval_steps.tolist() == [5] and not math.isnan(h.final_accuracy)


def test_a_history_continues_another(digits):
    net = mlp()
    first = train(net, digits, steps=10, eval_every=5)
    both = first + train(net, digits, optimizer=sgd_step, steps=6, eval_every=3)
    assert len(both.losses) == 16 and both.eval_steps.tolist() == [5, 10, 13, 16]
    assert (both.eval_seconds.diff() > 0).all() and both.seconds >= both.eval_seconds[-1]
    assert both.final["steps"] == 16 and both.final["accuracy"] == both.final_accuracy == float(both.accuracy[-1])


def test_the_final_loss_is_the_mean_of_the_last_tenth():
    empty = torch.empty(0)
    h = History(torch.arange(100.0), empty, empty, torch.tensor([0.2, 0.9, 0.5]), empty, 1.0)
    assert h.final_loss == 94.5 and h.final_accuracy == 0.5 and abs(h.best_accuracy - 0.9) < 1e-6 and not h.diverged
    assert History(torch.tensor([1.0, math.inf]), empty, empty, empty, empty, 1.0).diverged


def test_an_absurd_learning_rate_diverges(digits):
    assert train(mlp(), digits, optimizer=sgd_step, lr=1e18, steps=20).diverged


def test_three_epochs_teach_an_mlp_and_a_convnet_to_read_digits(digits):
    mnist = data.mnist5k()
    assert train(mlp(widths=(784, 128, 10)), mnist, epochs=3).final_accuracy > 0.85
    torch.manual_seed(0)
    assert train(models.ConvNet((16, 32)), digits, epochs=4, lr=1e-2).final_accuracy > 0.85


def test_a_transformer_learns_from_bytes():
    torch.manual_seed(0)
    net = models.Transformer(d=32, layers=1, heads=2, length=32)
    h = train(net, data.pycode(300_000), steps=60, batch_size=32, lr=3e-3)
    assert abs(h.losses[0] - math.log(256)) < 0.2 and h.final_loss < 3.6 and h.eval_losses[-1] < 4.0


def test_a_text_is_judged_by_its_validation_part():
    text = data.Text(torch.zeros(500, dtype=torch.uint8), torch.ones(500, dtype=torch.uint8), "zeros, then ones")
    h = train(models.Transformer(d=16, layers=1, heads=1, length=8), text, steps=30, lr=1e-2)
    assert h.final_loss < 1 < h.eval_losses[-1] and h.final_accuracy == 0


def test_text_needs_a_model_that_knows_its_length(digits):
    with pytest.raises(TypeError, match="no `length`"):
        train(mlp(), data.pycode(10_000), steps=1)


@pytest.mark.parametrize("length", [{}, {"steps": 1, "epochs": 1}])
def test_the_length_of_training_is_said_once(digits, length):
    with pytest.raises(ValueError, match="either steps"):
        train(mlp(), digits, **length)


@FEW
@given(n=st.integers(1, 50), seed=st.integers(0, 99))
def test_accuracy_is_the_share_of_right_answers_and_leaves_the_mode(n, seed):
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.9))
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, 3, generator=g), torch.randint(4, (n,), generator=g)
    for mode in (True, False):
        net.train(mode)
        assert accuracy(net, x, y) == pytest.approx((net[0](x).argmax(-1) == y).float().mean().item())
        assert net.training == mode
    loss, _ = evaluate(net, x, y, batch_size=7)
    assert loss == pytest.approx(nn.functional.cross_entropy(net[0](x), y).item(), rel=1e-5)


def test_training_outside_a_notebook_and_a_terminal_prints_nothing(digits, capfd):
    train(mlp(), digits, steps=5)
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


def test_the_bar_in_a_terminal_uses_one_line_of_stdout(digits, capsys, monkeypatch):
    monkeypatch.delenv("NBGRADER_EXECUTION", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    train(mlp(), digits, steps=5)
    captured = capsys.readouterr()
    assert "MLP on digits: 5 steps in" in captured.out and captured.out.count("\n") == 1 and captured.err == ""
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    train(mlp(), digits, steps=5)
    assert capsys.readouterr().out == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_the_gpu_follows_training_on_the_cpu(digits):
    there, here = (train(mlp(), digits, optimizer=momentum_step, steps=50, device=d) for d in ("cuda", "cpu"))
    torch.testing.assert_close(there.losses, here.losses, rtol=1e-2, atol=1e-2)
    assert there.losses.device.type == "cpu"
