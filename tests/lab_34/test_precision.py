"""The transformer of lab 34 whose results are rounded, and its trainer."""
import math

import pytest
import torch

from course import data, precision


@pytest.fixture(scope="module")
def text():
    return data.pycode(100_000)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tokens(model, n=2):
    return torch.randint(256, (n, model.length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_without_a_format_nothing_is_changed(norm):
    model = precision.transformer(layers=2, norm=norm)
    torch.testing.assert_close(precision.Rounded(model)(tokens(model)), model(tokens(model)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_every_segment_gives_numbers_of_the_format_but_for_those_that_are_kept(dtype, norm):
    model = precision.transformer(layers=2, norm=norm)
    kept = {"residual", "scores"}
    net = precision.Rounded(model, dtype, keep=kept)
    net(tokens(model))
    for name, x in net.seen.items():
        assert torch.equal(x, x.to(dtype).float()) == kept.isdisjoint(name.split()), name
    assert {word for name in net.seen for word in name.split()} - {"block", "0", "1", "2"} == set(precision.SEGMENTS)


def test_gradients_are_rounded_on_their_way_back():
    model = precision.transformer(layers=1)
    precision.Rounded(model, torch.bfloat16)(tokens(model)).square().sum().backward()
    grad = model.blocks[0].down.weight.grad
    assert torch.equal(grad, grad.bfloat16().float())


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_segments_are_named_in_the_order_of_computing(norm):
    """Each has a name of its own: with one name for both norms of a block, an overflow between them seemed to be in the first."""
    model = precision.transformer(layers=1, norm=norm)
    net = precision.Rounded(model)
    net(tokens(model))
    attention, mlp = ["qkv", "scores", "softmax", "attention", "out"], ["up", "gelu", "down"]
    block = (["norm 1", *attention, "residual 1", "norm 2", *mlp, "residual 2"] if norm == "pre" else
             [*attention, "residual 1", "norm 1", *mlp, "residual 2", "norm 2"])
    assert list(net.seen) == [f"block 0 {name}" for name in block] + ["norm"] * (norm == "pre") + ["logits"]


def test_an_overflow_is_found_where_it_happens():
    """The lab's experiment: what goes into one attention is 200 times as large, and fp16 ends in its scores."""
    model = precision.transformer(layers=3)
    with torch.no_grad():
        model.blocks[1].norm1.weight *= 2000    # not trained: ten times as much is needed
    for dtype, place in ((torch.float16, "block 1 scores"), (torch.bfloat16, None)):
        net = precision.Rounded(model, dtype)
        net(tokens(model))
        assert next((name for name, x in net.seen.items() if not x.isfinite().all()), None) == place


def test_real_bfloat16_is_near_the_imitation():
    model = precision.transformer(layers=2)
    imitated = precision.Rounded(model, torch.bfloat16)(tokens(model))
    for keep in ((), ("norm", "scores", "softmax", "attention", "residual")):
        real = precision.Rounded(model, torch.bfloat16, keep, real=True)(tokens(model))
        assert real.dtype == torch.bfloat16
        assert (real.float() - imitated).abs().max() < 0.05 * imitated.abs().max()


def test_a_wrong_segment_is_named():
    with pytest.raises(ValueError, match="sofmax.*softmax"):
        precision.Rounded(precision.transformer(layers=1), keep={"sofmax"})


def test_the_trainer_walks_as_adam_does(text):
    model, other = precision.transformer(layers=1), precision.transformer(layers=1)
    trainer = precision.Trainer(precision.Rounded(model), text, lr=1e-3, batch=4).run(0, 3)
    adam = torch.optim.Adam(other.parameters(), lr=1e-3)
    for number in range(3):
        x, y = trainer.data(number)
        adam.zero_grad()
        torch.nn.functional.cross_entropy(other(x).flatten(0, 1), y.flatten()).backward()
        adam.step()
    for p, q in zip(model.parameters(), other.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_brings_everything_back(text):
    trainer = precision.Trainer(precision.Rounded(precision.transformer(layers=1)), text, lr=1e-3, batch=4).run(0, 2)
    saved = trainer.checkpoint()
    first = [trainer.step(number) for number in (2, 3)]
    trainer.restore(saved)
    assert [trainer.step(number) for number in (2, 3)] == first


def test_lost_updates_are_counted_and_a_skipped_step_changes_nothing(text):
    trainer = precision.Trainer(precision.Rounded(precision.transformer(layers=1), torch.bfloat16), text, lr=1e-9, batch=4,
                                apply=lambda w, u, s: ((w.float() - u).bfloat16(), s)).run(0, 1)
    assert trainer.lost[0] > 0.5
    skipping = precision.Trainer(precision.Rounded(precision.transformer(layers=1)), text, batch=4, scale=lambda g, s, n: (None, s / 2, 0))
    before = skipping.weights.clone()
    skipping.run(0, 2)
    assert torch.equal(skipping.weights, before) and skipping.scales == [2.0**16, 2.0**15]


def test_the_loss_shows_a_divergence_when_it_has_risen():
    falling = [3 - 0.01 * i for i in range(100)]
    assert precision.shown(falling) is None
    when = precision.shown(falling + [4.0] * 10)
    assert 100 <= when < 105
    assert precision.shown(falling + [math.nan]) == 100
    assert precision.shown(falling[:10]) is None


def test_the_overall_reading_is_the_largest_of_all_blocks_and_keeps_nan():
    readings = {"block 0 scores": 1.0, "block 1 scores": 3.0, "block 0 residual 1": 2.0, "block 1 residual 2": math.nan, "logits": 5.0, "gradient norm": 0.1}
    overall = precision.overall(readings)
    assert overall["scores"] == 3 and math.isnan(overall["residual"]) and overall["logits"] == 5 and overall["gradient norm"] == 0.1
