"""A cell that keeps the student waiting says so beforehand, shows how far it is, and can be stopped."""
from jupyter_client.manager import start_new_kernel
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from autograder.execute import long_cells


def cell(source: str, seconds: int, **metadata):
    times = {"iopub.execute_input": "2030-01-01T12:00:00.000000Z", "shell.execute_reply": f"2030-01-01T12:00:{seconds:02}.000000Z"}
    return new_code_cell(source, metadata={"execution": times, **metadata})


def test_a_long_cell_is_announced_if_its_section_says_how_long_before_it():
    notebook = new_notebook(cells=[
        cell("setup('11')", 9, tags=["setup"]), new_markdown_cell("## One\n\nThe next cell trains for about 20 seconds."),
        new_markdown_cell("*My prediction:*"), cell("a = 1", 21), new_markdown_cell("## Two\n\nAs quick as the second."), cell("b = 2", 6), cell("c = 3", 4)])
    assert long_cells(notebook) == [(21, "a = 1", True), (6, "b = 2", False)]


TRAINING = """
from course import data, models, train
history = train.train(models.MLP([64, 32, 10]), data.digits(), steps=10**7)
"""


def test_training_shows_how_far_it_is_and_the_stop_button_loses_nothing():
    manager, client = start_new_kernel()
    shown = []

    def look(message: dict) -> None:
        bar = "<progress" in message["content"].get("data", {}).get("text/html", "")
        if bar and not shown:
            manager.interrupt_kernel()
        shown.extend([message] * bar)
    try:
        reply = client.execute_interactive(TRAINING, output_hook=look, timeout=300)
        assert shown and reply["content"]["status"] == "ok"
        said = []
        client.execute_interactive("print(history.interrupted, len(history.losses) > 0)", output_hook=lambda m: said.append(m["content"].get("text", "")), timeout=60)
        assert "".join(said).strip() == "True True"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
