"""Pictures with sliders: in a notebook with widgets, in one without, and outside of any."""
import re

import nbformat
import pytest
from nbclient import NotebookClient

from course.sliders import VIEW, Slider, show

DRAW = """
from course import plots, sliders

def draw(rate, steps):
    if steps > 90:
        raise RuntimeError("too many steps")
    plots.lines({"loss": [rate] * int(steps)}, title="A line", xlabel="step", ylabel="loss",
                alt=f"A line at {rate:.3g} for {steps} steps.")
"""
SHOW = "sliders.show(draw, rate=sliders.Slider(0.001, 1, start=0.1, log=True), steps=sliders.Slider(2, 100, start=10))"
MOVE = """
from ipywidgets.widgets.widget import _instances
rate, steps, picture = (next(w for w in _instances.values() if type(w).__name__ == name) for name in ("FloatLogSlider", "IntSlider", "HTML"))
"""


@pytest.fixture(scope="module")
def outputs():
    moves = ["rate.value = 0.01; print(picture.value)", "steps.value = 99; print(picture.value)", "steps.value = 50; print(picture.value)"]
    cells = [DRAW, SHOW, MOVE, *moves, "import sys; sys.modules['ipywidgets'] = None\n" + SHOW]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    return [cell.outputs for cell in notebook.cells]


def test_one_output_is_a_widget_and_for_who_has_none_a_picture_with_alternative_text(outputs):
    [output] = outputs[1]
    assert output.data[VIEW]["model_id"] and "image/png" in output.data
    assert 'alt="A line at 0.1 for 10 steps."' in output.data["text/html"]


def test_moving_a_slider_draws_anew_and_an_error_is_shown_until_the_next_move(outputs):
    first, second, third = (re.sub(r'src="[^"]*"', "", cell[0].text) for cell in outputs[3:6])
    assert "A line at 0.01 for 10 steps." in first
    assert "RuntimeError: too many steps" in second
    assert "A line at 0.01 for 50 steps." in third


def test_without_ipywidgets_it_is_a_figure_like_any_other(outputs):
    [output] = outputs[6]
    assert VIEW not in output.data and "A line at 0.1" in output.data["text/html"]


def test_outside_of_a_notebook_the_start_is_drawn_once():
    drawn = []
    show(lambda **values: drawn.append(values), x=Slider(0, 1, start=0.5), n=Slider(1, 9, start=3))
    assert drawn == [{"x": 0.5, "n": 3}]


@pytest.mark.parametrize("words", [dict(low=0, high=1, start=2), dict(low=0, high=1, start=0.5, log=True), dict(low=2, high=1, start=1.5)])
def test_a_slider_that_cannot_be_is_refused(words):
    with pytest.raises(ValueError, match="a slider needs low <= start <= high"):
        Slider(**words)
