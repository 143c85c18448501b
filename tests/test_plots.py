"""Facts about the surfaces, the races on them, and the pictures."""

import base64
import io
import itertools
import math
import re

import IPython
import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from course import plots, surfaces
from course.surfaces import bounded_saddle, race, rotated, saddle, valley

FEW = settings(max_examples=25, deadline=None, database=None)
SURFACES = st.builds(rotated, st.sampled_from([saddle, bounded_saddle, valley]), st.sampled_from([0, 30, 45, -120]))
POINT = st.tuples(st.floats(-2, 2), st.floats(-2, 2)).map(lambda p: torch.tensor(p, dtype=torch.float64))
close = lambda a, b, tol=1e-9: torch.testing.assert_close(a, b, rtol=tol, atol=tol)


def sgd(param, grad, state, lr=0.1):
    return param - lr * grad, state


def sign_step(param, grad, state, lr=0.1):
    return param - lr * grad.sign(), state


# --- surfaces --------------------------------------------------------------------------------------------------------

@FEW
@given(surface=SURFACES, point=POINT)
def test_the_derivatives_are_those_of_the_value(surface, point):
    close(surface.grad(point), torch.autograd.functional.jacobian(surface.value, point))
    close(surface.hessian(point), torch.autograd.functional.hessian(surface.value, point))


@FEW
@given(surface=SURFACES, points=st.lists(POINT, min_size=1, max_size=4))
def test_many_points_at_once_give_what_each_gives_alone(surface, points):
    batch = torch.stack(points)[None]
    for method in (surface.value, surface.grad, surface.hessian):
        close(method(batch)[0], torch.stack([method(p) for p in points]))
    assert surface.value(batch).dtype == torch.float64


@FEW
@given(surface=SURFACES, point=POINT, a=st.floats(-200, 200), b=st.floats(-200, 200))
def test_turning_keeps_heights_and_adds_up(surface, point, a, b):
    turned = rotated(surface, a)
    close(turned.value(turned.outer(surface.own(point))), surface.value(point))
    close(turned.own(turned.outer(point)), point)
    close(rotated(turned, b).value(point), rotated(surface, a + b).value(point), 1e-7)


def test_turning_goes_counter_clockwise():
    close(rotated(saddle, 90).outer((1.0, 0.0)), torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert rotated(rotated(saddle, 30), 15).name == "saddle, turned by 45°" and rotated(rotated(saddle, 9), -9).name == "saddle"


@pytest.mark.parametrize("surface", [bounded_saddle, valley, rotated(bounded_saddle, 30)])
def test_minima_are_flat_and_curve_upwards(surface):
    assert len(surface.minima)
    for point in surface.minima:
        assert surface.grad(point).norm() < 1e-12 and torch.linalg.eigvalsh(surface.hessian(point)).min() > 0
    (left, right), (bottom, top) = surface.limits
    assert all(left < x < right and bottom < y < top for x, y in surface.minima.tolist())


@pytest.mark.parametrize("surface", [saddle, bounded_saddle])
def test_the_origin_of_a_saddle_is_flat_and_curves_both_ways(surface):
    origin = torch.zeros(2, dtype=torch.float64)
    assert surface.grad(origin).norm() == 0
    close(torch.linalg.eigvalsh(surface.hessian(origin)), torch.tensor([-2.0, 2.0], dtype=torch.float64))


def test_the_valley_has_the_condition_number_its_comment_gives():
    low, high = torch.linalg.eigvalsh(valley.hessian(valley.minima[0]))
    assert round(float(high / low)) == 258


# --- races -----------------------------------------------------------------------------------------------------------

@FEW
@given(x=st.floats(-1, 1), y=st.floats(-1, 1), lr=st.floats(0.001, 0.4), steps=st.integers(0, 30))
def test_gradient_descent_on_the_saddle_follows_its_formula(x, y, lr, steps):
    path = race(saddle, {"a": (sgd, {"lr": lr})}, (x, y), steps)["a"]
    t = torch.arange(steps + 1, dtype=torch.float64)
    close(path, torch.stack([x * (1 - 2 * lr) ** t, y * (1 + 2 * lr) ** t], -1))


def test_gradient_descent_does_not_notice_a_turn_and_a_sign_step_does():
    turned, start = rotated(bounded_saddle, 45), (-1.0, 1e-3)
    there = race(turned, {"a": sgd, "b": sign_step}, turned.outer(start), 40)
    here = race(bounded_saddle, {"a": sgd, "b": sign_step}, start, 40)
    close(turned.own(there["a"]), here["a"], 1e-6)
    assert (turned.own(there["b"]) - here["b"]).abs().max() > 0.1


def test_many_starts_race_as_each_alone():
    starts = torch.tensor([[-1.0, 0.1], [0.5, 0.2], [-0.3, -1.0]], dtype=torch.float64)
    together = race(valley, {"a": sgd}, starts, 7)["a"]
    close(together, torch.stack([race(valley, {"a": sgd}, s, 7)["a"] for s in starts], 1))


def test_a_race_hands_the_state_on_and_starts_it_empty():
    def count(param, grad, state):
        seen.append(dict(state))
        return param, {"t": state.get("t", 0) + 1}
    seen = []
    race(saddle, {"a": count, "b": count}, (1, 1), 3)
    assert seen == [{}, {"t": 1}, {"t": 2}] * 2


def test_a_step_that_works_in_place_does_not_spoil_the_path():
    def in_place(param, grad, state):
        return param.sub_(0.1 * grad), state
    close(race(valley, {"a": in_place}, (-1, 1), 9)["a"], race(valley, {"a": sgd}, (-1, 1), 9)["a"])


def test_until_ends_a_path_at_the_first_point_that_fulfils_it():
    path = race(saddle, {"a": (sgd, {"lr": 0.01})}, (-1, 1e-3), 1000, until=lambda p: abs(p[1]) > 0.5)["a"]
    assert len(path) == 315 and abs(path[-1, 1]) > 0.5 and (path[:-1, 1].abs() <= 0.5).all()  # ln 500 / ln 1.02 = 313.8


@FEW
@given(flags=st.lists(st.booleans(), min_size=1, max_size=12))
def test_settling_means_near_a_target_from_then_to_the_end(flags):
    path = torch.tensor([[0.0, 1.0] if near else [5.0, 5.0] for near in flags], dtype=torch.float64)
    tail = len(list(itertools.takewhile(bool, reversed(flags))))
    targets = torch.tensor([[9.0, 9.0], [0.0, 1.0]], dtype=torch.float64)
    assert surfaces.settled_step(path, targets) == (len(flags) - tail if tail else None)
    assert surfaces.first_step(path, lambda p: p[:, 0] < 1) == (flags.index(True) if any(flags) else None)


# --- style -----------------------------------------------------------------------------------------------------------

def luminance(color):
    channels = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in matplotlib.colors.to_rgb(color)]
    return float(np.dot(channels, (0.2126, 0.7152, 0.0722)))


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("background", ["#ffffff", "#111111"])
def test_text_and_curves_stand_out_on_light_and_on_dark(background):
    assert contrast(plots.INK, background) > 4.2
    assert all(contrast(c, background) > 2 for c in plots.PALETTE)


def test_the_style_holds_for_our_figures_only():
    before = dict(matplotlib.rcParams)
    fig, ax = plots.figure("t", "step", "loss", alt="nothing yet")
    plots.png(fig)
    assert dict(matplotlib.rcParams) == before
    assert ax.xaxis.label.get_color() == plots.INK and Figure().subplots().xaxis.label.get_color() == "black"


@given(names=st.lists(st.sampled_from([*plots.METHODS, "mine", "yours", "other"]), unique=True, max_size=7))
def test_a_method_looks_the_same_in_every_figure_and_unlike_the_others(names):
    look = plots.looks(names)
    assert all(look[n] == plots.looks([n])[n] for n in names if n in plots.METHODS)
    assert len({l["color"] for l in look.values()}) == len({l["marker"] for l in look.values()}) == len(names)


def test_a_figure_without_alternative_text_is_refused():
    with pytest.raises(ValueError, match="alternative text"):
        plots.figure("t", "x", "y", alt=" ")
    with pytest.raises(ValueError, match="alternative text"):
        plots.show(Figure())


def test_the_png_is_transparent_and_has_two_pixels_for_one():
    fig, ax = plots.figure("t", "x", "y", alt="a", size=(3, 2))
    ax.text(0.5, 0.5, "added by hand")
    image = Image.open(io.BytesIO(plots.png(fig)))
    assert image.size == (600, 400) and image.convert("RGBA").getpixel((1, 1))[3] == 0
    dark = np.asarray(image.convert("RGBA"))
    assert not ((dark[..., 3] > 200) & (dark[..., :3].max(-1) < 60)).any()  # no black ink, which a dark page would hide


# --- pictures --------------------------------------------------------------------------------------------------------

@pytest.fixture
def shown(monkeypatch):
    """What the notebook would get: a list of (data, metadata)."""
    import IPython.display
    got = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: object())
    monkeypatch.setattr(IPython.display, "display", lambda data, raw, metadata: got.append((data, metadata)))
    return got


PATHS = race(saddle, {"SGD": sgd, "Adam": sign_step, "mine": (sgd, {"lr": 1e200})}, (-1.0, 1e-3), 60)


def draw_all():
    plots.lines({"a": [3, 2, 1], "b": ([0, 2], [1.0, math.nan])}, title="t", xlabel="step", ylabel="loss", alt='A "quote" & more',
                bands={"a": ([2, 1, 0], [4, 3, 2])}, limits={"limit": 1.5}, logy=True)
    plots.bars({"a": 1.0, "b": 12, "c": None}, title="t", xlabel="s", alt="bars", limits={"target": 8}, intervals={"b": (11, 14)})
    plots.bars({"g": {"a": 1, "b": 0}, "h": {"a": 1000, "b": math.nan}}, title="t", xlabel="s", alt="groups", log=True)
    plots.race(saddle, {"SGD": sgd}, (-1, 0.1), 20)
    plots.contour_race(valley, race(valley, {"SGD": sgd}, (-1, 1), 5))
    plots.surface_race(saddle, PATHS)
    plots.animate_race(saddle, PATHS)


def test_every_picture_comes_as_png_and_as_html_with_its_alternative_text(shown):
    draw_all()
    assert len(shown) == 7
    for bundle, metadata in shown:
        alt = re.search(r'alt="([^"]*)"', bundle["text/html"]).group(1)
        assert alt and alt.replace("&quot;", '"').replace("&amp;", "&") == bundle["text/plain"]
        image = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
        assert image.size[0] == 2 * metadata["image/png"]["width"]
        assert np.asarray(image.convert("RGBA"))[..., 3].any()
    assert shown[0][0]["text/plain"] == 'A "quote" & more'


def test_outside_a_notebook_the_alternative_text_is_printed(capsys):
    plots.race(saddle, {"SGD": sgd}, (-1, 0.1), 60)
    assert capsys.readouterr().out == "[figure] Paths of optimizers on the saddle: SGD leaves the picture at step 14.\n"


def test_the_animation_is_small_and_needs_no_network(shown):
    plots.animate_race(bounded_saddle, race(bounded_saddle, {"Adam": sign_step, "SGD": sgd}, (-1, 1e-3), 400))
    page = shown[0][0]["text/html"]
    frames = re.search(r"frames = \[(.*?)\];", page).group(1).split(", ")
    assert 30 <= len(frames) <= 40 and len(page) < 3e6 and "http" not in page
    first, last = (Image.open(io.BytesIO(base64.b64decode(frames[i]))).convert("RGBA") for i in (0, -1))
    assert first.getpixel((0, 0))[3] == 0
    blue = lambda frame: (np.abs(np.asarray(frame)[..., :3] - np.array([0, 114, 178])).max(-1) < 30).sum()
    assert blue(last) > blue(first) + 300  # SGD has left a trail


def test_pictures_can_share_a_figure():
    fig, axes = plots.figure("three", alt="three panels", columns=3, size=(9, 3))
    assert plots.contour_race(saddle, PATHS, ax=axes[0], legend=False) is fig
    assert plots.lines({"a": [1, 2]}, title="t", xlabel="x", ylabel="y", alt="a", ax=axes[1]) is fig
    assert plots.bars({"a": 1}, title="t", xlabel="x", alt="a", ax=axes[2]) is fig
    assert [ax.get_title(loc="left") for ax in axes] == ["Saddle", "t", "t"]
    assert len(plots.png(fig)) > 5000


def test_bars_write_their_numbers_and_name_what_is_missing():
    fig, ax = plots.figure(alt="a")
    plots.bars({"a": 1234.0, "b": None, "c": math.nan}, title="t", xlabel="x", alt="a", ax=ax, form="{:,.0f}", missing="not yet")
    assert [t.get_text() for t in ax.texts] == ["1,234", "not yet", "not yet"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b", "c"]


@FEW
@given(values=st.lists(st.floats(0.01, 1e6), min_size=1, max_size=5), limit=st.floats(0.01, 1e6), log=st.booleans())
def test_all_bars_and_limits_are_inside_their_axes(values, limit, log):
    fig, ax = plots.figure(alt="a")
    plots.bars({str(i): v for i, v in enumerate(values)}, title="t", xlabel="x", alt="a", ax=ax, limits={"limit": limit}, log=log)
    left, right = ax.get_xlim()
    assert left < min(*values, limit) and max(*values, limit) < right
    assert [bar.get_x() + bar.get_width() for bar in ax.patches] == pytest.approx(values)


@FEW
@given(points=st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=1, max_size=8))
def test_a_path_is_cut_off_where_it_crosses_the_border(points):
    kept, left_at = plots._inside(saddle, torch.tensor(points, dtype=torch.float64))
    outside = [i for i, p in enumerate(points) if max(map(abs, p)) > 1.2]
    assert left_at == (outside[0] if outside else None)
    if left_at:
        assert np.abs(kept[-1]).max() == pytest.approx(1.2, abs=1e-6) and len(kept) == left_at + 1


def test_a_path_that_runs_to_infinity_ends_at_its_last_point():
    kept, left_at = plots._inside(saddle, torch.tensor([[0.0, 0.0], [1.0, 1.0], [math.nan, 0.0], [0.0, 0.0]]))
    assert left_at == 2 and kept.tolist() == [[0, 0], [1, 1]]
