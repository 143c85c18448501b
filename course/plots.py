"""The course's pictures, all in one style: readable on a dark and on a light page, by eyes that mix up colours, and aloud.

`figure` makes an empty one, `show` displays it together with its alternative text. `lines` and `bars` draw what most
experiments need; `race`, `contour_race`, `surface_race` and `animate_race` draw optimizers at work. They show what they
drew; those that can be given axes (`ax=`) then draw there and return the figure unshown.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import string
import sys
import textwrap
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from course import surfaces

# Okabe & Ito's colours, less black and yellow, which vanish on one of the two backgrounds.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8A8A8A")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
INK = "#7A7A7A"  # contrast 4.3 against white and against #111: no grey has more against both
# The optimizers look the same in every figure. Grey, the colour of axes, goes to the one least often in front.
METHODS = {"SGD": 0, "momentum": 1, "Nesterov": 2, "AdaGrad": 3, "RMSprop": 4, "Adam": 5, "AdaDelta": 6}
TITLE = {"fontsize": 11, "fontweight": "bold", "color": INK}
STYLE = {
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none", "legend.frameon": False,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "axes.titlecolor": INK, "xtick.color": INK,
    "ytick.color": INK, "legend.labelcolor": INK, "grid.color": INK, "grid.alpha": 0.25, "grid.linewidth": 0.6,
    "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.labelsize": 10,
    "axes.titlepad": 10,  # clear of the marks of paths that leave at the top
    "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9, "lines.linewidth": 1.8, "font.size": 10,
    "axes.prop_cycle": matplotlib.cycler(color=PALETTE), "font.family": "DejaVu Sans", "mathtext.fontset": "dejavusans",
}


def looks(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and dashes for each name. The seven optimizers always get the same; others take what is free."""
    names = list(names)
    free = [i for i in range(len(PALETTE)) if i not in [METHODS.get(n) for n in names]] or range(len(PALETTE))
    others = {n: free[i % len(free)] for i, n in enumerate(n for n in names if n not in METHODS)}
    places = {n: METHODS.get(n, others.get(n)) for n in names}
    return {n: {"color": PALETTE[i], "marker": MARKS[i], "linestyle": DASHES[i % len(DASHES)]} for n, i in places.items()}


def figure(title: str = "", xlabel: str = "", ylabel: str = "", *, alt: str, size: tuple[float, float] = (6.4, 3.8),
           columns: int = 1, **axes: Any) -> tuple[Figure, Any]:
    """An empty figure and its axes (an array of them where columns > 1). `size` in inches, 100 CSS pixels each.

    `alt` says in one or two sentences what a reader who cannot see the picture should learn from it.
    `axes` goes to matplotlib's add_subplot, such as projection="3d". The style holds for this figure only.
    """
    if not alt.strip():
        raise ValueError("every figure needs alternative text: say in `alt` what it shows")
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=size, dpi=100, layout="constrained")
        FigureCanvasAgg(fig)
        fig.set_label(alt)
        panels = fig.subplots(1, columns, squeeze=False, subplot_kw=axes)[0]
        panels[0].set_ylabel(ylabel)
        for ax in panels:
            ax.set_xlabel(xlabel)
        if columns == 1:
            panels[0].set_title(title)
        elif title:
            fig.suptitle(title, **TITLE)
    return fig, panels[0] if columns == 1 else panels


def png(fig: Figure, background: str = "none", scale: float = 2) -> bytes:
    """The figure as a PNG file: transparent, with twice the pixels for sharp screens."""
    with matplotlib.rc_context(STYLE):
        for artist in fig.findobj(Text):
            if to_hex(artist.get_color()) == "#000000":  # added by hand, outside the style
                artist.set_color(INK)
        file = io.BytesIO()
        fig.savefig(file, format="png", dpi=scale * fig.dpi, facecolor=background)
    return file.getvalue()


def show(fig: Figure, alt: str | None = None, *, player: str = "") -> None:
    """Display in the notebook, as HTML with alternative text and as PNG; elsewhere print the alternative text.

    `player` is HTML to show in the picture's place where the notebook can (see `animate_race`).
    """
    alt = alt or fig.get_label()
    if not alt:
        raise ValueError("every figure needs alternative text: show(fig, alt=...)")
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        print(f"[figure] {alt}")
    else:
        from IPython.display import display
        data, (width, height) = png(fig), (round(100 * s) for s in fig.get_size_inches())
        encoded = base64.b64encode(data).decode()
        image = (f'<img alt="{html.escape(alt, quote=True)}" width="{width}" style="max-width:100%; height:auto" '
                 f'src="data:image/png;base64,{encoded}">')
        display({"text/plain": alt, "image/png": encoded, "text/html": player or image}, raw=True,
                metadata={"image/png": {"width": width, "height": height, "alt": alt}})
    fig.clear()  # the memory is free at once


def _done(fig: Figure, shown: bool) -> Figure | None:
    return show(fig) if shown else fig


def _own(ax: Axes | None, **words: Any) -> tuple[Figure, Axes, bool]:
    """The axes to draw on, and whether they are ours to show."""
    if ax is None:
        return *figure(**words), True
    with matplotlib.rc_context(STYLE):
        ax.set_title(words.get("title", ""))
        ax.set(xlabel=words.get("xlabel", ""), ylabel=words.get("ylabel", ""))
    return ax.figure, ax, False


def _legend(ax: Axes, place: str) -> None:
    places = {"inside": {"loc": "best"}, "beside": {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)},
              "below": {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 4}}
    with matplotlib.rc_context(STYLE):
        ax.legend(handlelength=2.6, **places[place])


# --- curves and bars -------------------------------------------------------------------------------------------------

def lines(curves: Mapping[str, Any], *, title: str, xlabel: str, ylabel: str, alt: str, x: Sequence[float] | None = None,
          bands: Mapping[str, tuple] | None = None, logx: bool = False, logy: bool = False,
          limits: Mapping[str, float] | None = None, marks: bool | None = None, ax: Axes | None = None,
          size: tuple[float, float] = (6.8, 3.8)) -> Figure | None:
    """Curves by name: each `y` (over the common `x`, or 0, 1, ...) or a pair `(x, y)`. NaN leaves a gap.

    bands   (low, high) by name, drawn as a pale band: say in the title or the text what it is
    limits  horizontal lines by name: a physical limit or a target
    marks   a marker at each point; None: where a curve has at most 30
    """
    fig, ax, shown = _own(ax, title=title, xlabel=xlabel, ylabel=ylabel, alt=alt, size=size)
    look = looks(curves)
    for name, curve in curves.items():
        xs, ys = curve if isinstance(curve, tuple) else (x if x is not None else np.arange(len(curve)), curve)
        xs, ys = np.asarray(xs, dtype=float), np.asarray(ys, dtype=float)
        marked = len(xs) <= 30 if marks is None else marks
        style = look[name] | ({} if marked else {"marker": ""})
        ax.plot(xs, ys, label=name, markersize=4.5, **style)
        if bands and name in bands:
            low, high = (np.asarray(b, dtype=float) for b in bands[name])
            ax.fill_between(xs, low, high, color=style["color"], alpha=0.2, linewidth=0)
    if logx:
        ax.set_xscale("log")
    if logy:
        ax.set_yscale("log")
    for name, value in (limits or {}).items():
        ax.axhline(value, color=INK, linewidth=1.2, linestyle=(0, (2, 2)))
        ax.annotate(textwrap.fill(name, 16), (1.01, value), xycoords=("axes fraction", "data"), va="center", color=INK,
                    fontsize=9)
    if len(curves) > 1:
        _legend(ax, "inside" if len(curves) < 4 else "below" if limits else "beside")
    return _done(fig, shown)


def timeline(rows: Mapping[str, Sequence[tuple[float, float, str]]], *, title: str, xlabel: str, alt: str,
             ax: Axes | None = None, size: tuple[float, float] | None = None) -> Figure | None:
    """What happened when: for each row spans (begin, end, kind), each kind in a colour of its own. The first row is on top."""
    fig, ax, shown = _own(ax, title=title, xlabel=xlabel, alt=alt, size=size or (8.4, 1.5 + 0.42 * len(rows)))
    kinds = list(dict.fromkeys(kind for spans in rows.values() for _, _, kind in spans))
    look = looks(kinds)
    for y, spans in enumerate(rows.values()):
        for kind in kinds:
            mine = [(begin, end - begin) for begin, end, k in spans if k == kind and end > begin]
            with matplotlib.rc_context(STYLE):
                # A pale edge keeps spans apart that follow each other without a pause.
                ax.broken_barh(mine, (y - 0.36, 0.72), facecolor=look[kind]["color"], edgecolor="white", linewidth=0.5)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    for kind in kinds:
        ax.barh(0, 0, color=look[kind]["color"], label=kind)
    _legend(ax, "beside")
    return _done(fig, shown)


def bars(values: Mapping[str, Any], *, title: str, xlabel: str, alt: str, intervals: Mapping[str, tuple] | None = None,
         limits: Mapping[str, float] | None = None, log: bool = False, form: str = "{:,.3g}", missing: str = "never",
         ax: Axes | None = None, width: float = 6.8) -> Figure | None:
    """Horizontal bars with their numbers: {name: value}, or {group: {name: value}} for several bars at each name.

    intervals  (low, high) by name, drawn as a thin line
    limits     vertical lines by name: a target, a physical limit
    form       how a number is written; a value of None gets no bar and the word `missing`
    """
    groups = values if isinstance(next(iter(values.values())), Mapping) else {"": values}
    names = list(dict.fromkeys(n for g in groups.values() for n in g))
    thick = 0.8 / len(groups)
    fig, ax, shown = _own(ax, title=title, xlabel=xlabel, alt=alt,
                          size=(width, 1.1 + len(names) * max(0.34, 0.22 * len(groups)) + 0.16 * len(limits or {})))
    ends = [v for g in groups.values() for v in g.values() if v is not None and math.isfinite(v)]
    ends += [*(limits or {}).values(), *(end for interval in (intervals or {}).values() for end in interval)]
    left = min((v for v in ends if v > 0), default=1.0) / 2 if log else 0.0
    look = looks(groups)
    for j, (group, part) in enumerate(groups.items()):
        for i, name in enumerate(names):
            value, y = part.get(name), i - 0.4 + thick * (j + 0.5)
            if name not in part:
                continue
            text, end = (missing, left) if value is None or not math.isfinite(value) else (form.format(value), value)
            end = max(end, left) if log else end
            color = look[group]["color"] if group else PALETTE[0]
            ax.barh(y, end - left, left=left, height=0.88 * thick, color=color, alpha=0.9, linewidth=0,
                    label=group if i == 0 and group else None)
            if intervals and not group and name in intervals:
                low, high = intervals[name]
                for color, extra in (("white", 2), (INK, 0)):  # a white edge, to be seen on the bar as well
                    ax.plot([low, high], [y, y], color=color, linewidth=1.6 + extra, marker="|", markersize=7 + extra,
                            markeredgewidth=1.6 + extra)
                end = max(end, high)
            ax.annotate(text, (max(end, left), y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9, color=INK)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.45, -0.55)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    top = max([left, *ends])
    if log:
        ax.set_xscale("log")
        ax.set_xlim(left, left * max(top / left, 2) ** 1.13)
    else:
        ax.set_xlim(1.13 * min(0, *ends, 0), 1.13 * top or 1)  # room for the numbers
    for i, (name, value) in enumerate((limits or {}).items()):  # named above the bars, a row each
        ax.axvline(value, color=INK, linewidth=1.2, linestyle=(0, (2, 2)))
        ax.annotate(name, (value, 1), xycoords=("data", "axes fraction"), xytext=(0, 3 + 12 * i), ha="center",
                    textcoords="offset points", color=INK, fontsize=9)
    if limits:
        ax.set_title(title, pad=6 + 12 * len(limits), loc="left", **TITLE)
    if len(groups) > 1:
        _legend(ax, "inside" if log else "beside")
    return _done(fig, shown)


# --- races -----------------------------------------------------------------------------------------------------------

def race(surface: surfaces.Surface, steppers: Mapping[str, surfaces.Stepper], start: Sequence[float], steps: int = 100,
         **options: Any) -> Figure | None:
    """Run `surfaces.race` and draw it with `contour_race`."""
    return contour_race(surface, surfaces.race(surface, steppers, start, steps), **options)


def contour_race(surface: surfaces.Surface, paths: Mapping[str, Any], *, title: str | None = None, alt: str | None = None,
                 legend: bool = True, ax: Axes | None = None, size: tuple[float, float] = (6.8, 4.6)) -> Figure | None:
    """Lines of equal height, and each path on them: [steps + 1, 2] by name, as `surfaces.race` gives them.

    A circle marks the common start, each method's own mark its last point inside the picture, a star a minimum.
    The legend says after how many steps a path left the picture. Dashed lines of equal height lie below zero.
    """
    fig, ax, shown = _own(ax, title=title or surface.name.capitalize(), xlabel="x", ylabel="y", size=size,
                          alt=alt or _race_alt(surface, paths))
    _contours(ax, surface)
    look = looks(paths)
    for k, (name, path) in enumerate(paths.items()):
        inside, left_at = _inside(surface, path)
        label = f"{name}, out at {left_at}" if left_at and shown else name
        # Paths that share a stretch stay visible: the first ones are wide, the later ones narrow and on top.
        ax.plot(*inside.T, color=look[name]["color"], linewidth=3.6 - 2.4 * k / max(1, len(paths) - 1), alpha=0.9, zorder=3)
        ax.plot(*inside[-1], color=look[name]["color"], marker=look[name]["marker"], markersize=8, markeredgecolor="white",
                markeredgewidth=0.9, linestyle="none", label=label, zorder=5, clip_on=False)
    start = np.asarray(next(iter(paths.values())))[0]
    ax.plot(*start, marker="o", markersize=9, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=2, zorder=6)
    if legend:
        _legend(ax, "beside")
    return _done(fig, shown)


def surface_race(surface: surfaces.Surface, paths: Mapping[str, Any], *, title: str | None = None, alt: str | None = None,
                 view: tuple[float, float] = (38, -60), size: tuple[float, float] = (6.8, 4.4)) -> None:
    """The same race in three dimensions; `view` is (elevation, azimuth) in degrees."""
    fig, ax = figure(title or surface.name.capitalize(), "x", "y", alt=alt or _race_alt(surface, paths), size=size,
                     projection="3d", computed_zorder=False)
    (left, right), (bottom, top) = surface.limits
    x, y, z = _grid(surface, 60)
    ax.plot_surface(x, y, z, color=INK, alpha=0.4, linewidth=0.3, edgecolor=INK, rstride=3, cstride=3, zorder=1)
    look = looks(paths)
    lift = 0.01 * float(z.max() - z.min())
    for name, path in paths.items():
        inside = _inside(surface, path)[0]
        height = surface.value(torch.as_tensor(inside)).numpy() + lift
        ax.plot(*inside.T, height, color=look[name]["color"], linewidth=2, zorder=3)
        ax.plot(*inside[-1:].T, height[-1:], color=look[name]["color"], marker=look[name]["marker"], markersize=7,
                markeredgecolor="white", markeredgewidth=0.8, linestyle="none", label=name, zorder=4)
    ax.view_init(*view)
    ax.set(xlim=(left, right), ylim=(bottom, top), zlabel="height")
    ax.zaxis.label.set_color(INK)
    ax.grid(visible=False)
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.pane.set_visible(False)
    ax.set_box_aspect((4, 4, 2.6), zoom=1.1)
    fig.legend(loc="outside right center", labelcolor=INK, frameon=False)
    show(fig)


def animate_race(surface: surfaces.Surface, paths: Mapping[str, Any], *, title: str | None = None, alt: str | None = None,
                 frames: int = 40, size: tuple[float, float] = (6.4, 4.4)) -> None:
    """The race as an animation with a button and a slider, in the notebook; a still picture where scripts cannot run.

    Needs no network and no video program. (matplotlib's own player paints the background white and loads a font.)
    """
    alt = alt or _race_alt(surface, paths)
    fig, ax = figure(title or surface.name.capitalize(), "x", "y", alt=alt, size=size)
    _contours(ax, surface)
    look, inside = looks(paths), {n: _inside(surface, p)[0] for n, p in paths.items()}
    trails = {n: ax.plot([], [], color=look[n]["color"], linewidth=2, alpha=0.8, animated=True)[0] for n in paths}
    heads = {n: ax.plot([], [], color=look[n]["color"], marker=look[n]["marker"], markersize=9, markeredgecolor="white",
                        linestyle="none", label=n, clip_on=False)[0] for n in paths}
    _legend(ax, "beside")
    counter = ax.text(0.02, 0.02, "", transform=ax.transAxes, color=INK, animated=True)
    last = max(len(p) for p in paths.values()) - 1
    moments = np.unique(np.round(np.linspace(0, 1, frames) ** 1.7 * last).astype(int))  # slow at first: most happens there

    fig.set_dpi(150)
    with matplotlib.rc_context(STYLE):
        fig.canvas.draw()
    still, pictures = fig.canvas.copy_from_bbox(fig.bbox), []  # what does not move is drawn once
    for step in moments:
        fig.canvas.restore_region(still)
        for name, path in inside.items():
            trails[name].set_data(*path[:step + 1].T)
            heads[name].set_data(*path[min(step, len(path) - 1), :, None])
            ax.draw_artist(trails[name])
            ax.draw_artist(heads[name])
        counter.set_text(f"step {step}")
        ax.draw_artist(counter)
        file = io.BytesIO()
        Image.fromarray(np.array(fig.canvas.buffer_rgba())).quantize(96).save(file, format="png")
        pictures.append(base64.b64encode(file.getvalue()).decode())
    fig.set_dpi(100)
    for artist in (*trails.values(), counter):
        artist.set_animated(False)
    show(fig, alt, player=PLAYER.substitute(
        id=f"race-{uuid.uuid4().hex[:8]}", alt=html.escape(alt, quote=True), width=round(100 * size[0]),
        still=pictures[-1], last=len(pictures) - 1, frames=json.dumps(pictures)))


PLAYER = string.Template("""<div id="$id" style="max-width:${width}px">
<img alt="$alt" style="width:100%" src="data:image/png;base64,$still">
<div style="display:flex; gap:10px"><button type="button" style="width:5em">Play</button>
<input type="range" min="0" max="$last" value="$last" aria-label="moment of the race" style="flex:1"></div>
<script>(() => {
  const root = document.getElementById("$id"), frames = $frames;
  const [img, button, slider] = ["img", "button", "input"].map(tag => root.querySelector(tag));
  let timer = null;
  const show = i => { slider.value = i; img.src = "data:image/png;base64," + frames[i]; };
  const stop = () => { clearInterval(timer); timer = null; button.textContent = "Play"; };
  slider.oninput = () => { stop(); show(+slider.value); };
  button.onclick = () => {
    if (timer) return stop();
    if (+slider.value == $last) show(0);
    button.textContent = "Pause";
    timer = setInterval(() => +slider.value < $last ? show(+slider.value + 1) : stop(), 120);
  };
})()</script></div>""")


def _race_alt(surface: surfaces.Surface, paths: Mapping[str, Any]) -> str:
    ends = []
    for name, path in paths.items():
        left_at = _inside(surface, path)[1]
        x, y = np.asarray(path)[-1]
        ends.append(f"{name} leaves the picture at step {left_at}" if left_at else f"{name} ends at ({x:.2f}, {y:.2f})")
    return f"Paths of optimizers on the {surface.name}: {'; '.join(ends)}."


def _grid(surface: surfaces.Surface, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    (left, right), (bottom, top) = surface.limits
    x, y = np.meshgrid(np.linspace(left, right, n), np.linspace(bottom, top, n))
    return x, y, surface.value(torch.from_numpy(np.stack([x, y], -1))).numpy()


def _contours(ax: Axes, surface: surfaces.Surface) -> None:
    x, y, z = _grid(surface, 160)
    low, high = z.min(), z.max()
    # Somewhat closer together near zero, the flat part, where the race is decided.
    steps = np.linspace(0, 1, 7)[1:] ** 1.4
    levels = np.unique(np.concatenate([low * steps, [0.0], high * steps]) if low < 0 else high * np.linspace(0.06, 1, 9) ** 2)
    with matplotlib.rc_context(STYLE):
        ax.contour(x, y, z, levels, colors=INK, linewidths=0.8, alpha=0.6)
    ax.grid(visible=False)
    ax.figure.set_layout_engine("compressed")  # the one that knows square axes
    ax.set(xlim=surface.limits[0], ylim=surface.limits[1], aspect="equal")
    for x, y in surface.minima.tolist():
        ax.plot(x, y, marker="*", markersize=13, color=INK, linestyle="none", zorder=2)


def _inside(surface: surfaces.Surface, path: Any) -> tuple[np.ndarray, int | None]:
    """The path until it leaves the picture, cut off at the border, and the step of its first point outside if any."""
    path = np.asarray(path, dtype=float)
    low, high = np.array(surface.limits).T
    within = ((path >= low) & (path <= high)).all(1)  # NaN: False
    if within.all():
        return path, None
    first = int(np.argmin(within))
    if first == 0:
        return path[:1], 0
    inner, outer = path[first - 1], path[first]
    if not np.isfinite(outer).all():
        return path[:first], first
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(outer > high, (high - inner) / (outer - inner), np.where(outer < low, (low - inner) / (outer - inner), 1))
    return np.vstack([path[:first], inner + shares.min() * (outer - inner)]), first
