"""A picture with sliders: move one, and your own function draws it anew. Where there are no widgets, it is a picture.

    sliders.show(draw, lr=Slider(0.001, 1, start=0.01, log=True), beta=Slider(0, 0.99, start=0.9))

`draw(lr=..., beta=...)` shows one figure, as any cell does.
"""
from __future__ import annotations

import html
import math
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

VIEW = "application/vnd.jupyter.widget-view+json"


@dataclass(frozen=True)
class Slider:
    """From `low` to `high`, both included; `log`: in equal factors; a `step` makes it halt at its multiples."""
    low: float
    high: float
    start: float
    step: float | None = None
    log: bool = False
    label: str = ""

    def __post_init__(self):
        if not self.low <= self.start <= self.high or (self.log and self.low <= 0):
            raise ValueError(f"a slider needs low <= start <= high, and low > 0 with log; got {self}")

    def widget(self, name: str):
        """The ipywidgets slider. It reports when it is let go, not on its way."""
        import ipywidgets
        words = {"description": self.label or name, "continuous_update": False, "style": {"description_width": "initial"}}
        if self.log:
            return ipywidgets.FloatLogSlider(value=self.start, min=math.log10(self.low), max=math.log10(self.high),
                                             step=self.step or 0.05, readout_format=".2g", **words)
        numbers = (self.start, self.low, self.high, self.step or 1)
        if all(float(n).is_integer() for n in numbers):
            value, low, high, step = map(int, numbers)
            return ipywidgets.IntSlider(value=value, min=low, max=high, step=step, **words)
        return ipywidgets.FloatSlider(value=self.start, min=self.low, max=self.high,
                                      step=self.step or (self.high - self.low) / 100, **words)


def show(draw: Callable[..., Any], **sliders: Slider) -> None:
    """Draw at the sliders' starts; in a notebook with widgets also put the sliders over the picture."""
    start = {name: slider.start for name, slider in sliders.items()}
    try:
        import ipywidgets
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        return draw(**start)
    if get_ipython() is None:
        return draw(**start)
    data, metadata = _drawn(draw, start)
    picture = ipywidgets.HTML(data["text/html"])
    handles = {name: slider.widget(name) for name, slider in sliders.items()}

    def redraw(_):
        picture.value = _html(draw, {name: handle.value for name, handle in handles.items()})
    for handle in handles.values():
        handle.observe(redraw, "value")
    box = ipywidgets.VBox([*handles.values(), picture])
    # One output in two forms: who cannot show the widget shows the picture.
    display({**data, VIEW: {"version_major": 2, "version_minor": 0, "model_id": box.model_id}}, metadata=metadata, raw=True)


def _drawn(draw: Callable[..., Any], values: dict[str, Any]) -> tuple[dict, dict]:
    """The last figure that `draw` shows, as a notebook's output."""
    from IPython.utils.capture import capture_output
    with capture_output(stdout=False, stderr=False) as shown:
        draw(**values)
    figures = [output for output in shown.outputs if "image/png" in output.data]
    if not figures:
        raise ValueError("sliders.show: the function that it calls must show a figure")
    return dict(figures[-1].data), dict(figures[-1].metadata or {})


def _html(draw: Callable[..., Any], values: dict[str, Any]) -> str:
    try:
        return _drawn(draw, values)[0]["text/html"]
    except Exception:  # in a widget's callback nobody would see it
        return f"<pre>{html.escape(traceback.format_exc(limit=-2))}</pre>"
