"""Any file at all is read as a notebook, or gets one line that says what it is instead."""
import json
import re

import nbformat
import pytest

from autograder import ipynb
from autograder.submission import MAX_CELLS, MAX_SOURCE, Unreadable, read_notebook

CELL = {"cell_type": "code", "id": "one", "metadata": {}, "source": "x = 1", "outputs": [], "execution_count": 3}
NOTEBOOK = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [CELL]}
TEXT = json.dumps(NOTEBOOK, indent=1)


@pytest.fixture
def read(tmp_path):
    def read(content):
        path = tmp_path / "lab.ipynb"
        path.write_bytes(content if isinstance(content, bytes) else (content if isinstance(content, str) else json.dumps(content)).encode())
        return read_notebook(path)
    return read


def with_cells(*cells, **changes):
    return {**NOTEBOOK, "cells": list(cells), **changes}


def sources(notebook):
    return [cell.source for cell in notebook.cells]


@pytest.mark.parametrize("content, what", [
    (b"", "is empty; save the notebook"),
    (b" \n\n", "is empty"),
    (b"%PDF-1.7 ...", "is a PDF file, not a notebook"),
    (b"PK\x03\x04....", "is a zip archive or an Office document"),
    (b"\x1f\x8b\x08\x00", "is a gzip archive"),
    (b"\x89PNG\r\n", "is a picture"),
    (b"\x00\x05\x16\x07\x00\x02", "is macOS's hidden companion of a file"),
    (b"\xcf\xfa\xed\xfe\x07\x00\x00\x01" * 20, "is a binary file, not a notebook"),
    ("<!DOCTYPE html>\n<html><title>Sign in</title>", "is a web page (a login page"),
    ("\n <HTML>", "is a web page"),
    ("import torch\nprint(1)", "is text, not a notebook"),
    ("[1, 2]", "is text, not a notebook"),
    ("null", "is text, not a notebook"),
    ("{}", "is JSON, but not a notebook: it has no cells"),
    ('{"cells": {}}', "it has no cells"),
    ('{"nbformat": 7, "blocks": []}', "is of notebook format 7, which is unknown here"),
    (TEXT[:60], "is incomplete: it breaks off after 60 characters"),
    (TEXT[:-3], "is incomplete"),
    (TEXT[:TEXT.index("true") + 2] if "true" in TEXT else TEXT[:TEXT.index('"x = 1') + 4], "is incomplete"),
    (TEXT.replace('"metadata"', "metadata", 1), "is damaged: Expecting property name enclosed in double quotes (line "),
    (TEXT + TEXT, "is damaged: Extra data"),
    (TEXT.replace(' "cells"', '<<<<<<< HEAD\n "cells"', 1), "is an unresolved merge: line 5 holds git's marker <<<<<<<"),
    ("[" * 10, "is text"),
    ('{"a":' * 100_000, "is nested too deeply for a notebook"),
    ('{"cells": ' + "[" * 100_000 + "]" * 100_000 + "}", "is nested too deeply for a notebook"),
    ('{"cells": [], "n": ' + "9" * 5000 + "}", "is no valid notebook: it holds a number that is too long"),
    (with_cells(*[CELL] * (MAX_CELLS + 1)), "is not gradable: it has 5,001 cells"),
    (with_cells({**CELL, "source": "x" * (MAX_SOURCE + 1)}), "is not gradable: its cells hold 4,194,305 characters"),
])
def test_what_is_no_notebook_gets_one_clear_line(read, content, what):
    with pytest.raises(Unreadable) as error:
        read(content)
    assert str(error.value).startswith("lab.ipynb is") and what in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


def test_a_folder_is_named_as_such(tmp_path):
    with pytest.raises(Unreadable, match="is a folder, not a notebook"):
        read_notebook(tmp_path)


def test_a_missing_file_is_named_as_such(tmp_path):
    with pytest.raises(Unreadable, match="lab.ipynb cannot be read: No such file or directory."):
        read_notebook(tmp_path / "lab.ipynb")


def test_a_device_is_not_read(tmp_path):
    (tmp_path / "lab.ipynb").symlink_to("/dev/zero")
    with pytest.raises(Unreadable, match="is not an ordinary file"):
        read_notebook(tmp_path / "lab.ipynb")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_every_encoding_is_read(read, encoding):
    text = json.dumps(with_cells({**CELL, "source": "# naïve"}), ensure_ascii=False)
    assert sources(read(text.encode(encoding))) == ["# naïve"]


def test_format_3_is_converted(read):
    cells = [{"cell_type": "heading", "level": 2, "source": ["Title"]}, {"cell_type": "code", "input": ["x = 1\n", "y = 2"], "language": "python"}]
    notebook = read({"nbformat": 3, "nbformat_minor": 0, "metadata": {"name": "old"}, "worksheets": [{"cells": cells}, {"cells": [cells[1]]}]})
    assert [cell.cell_type for cell in notebook.cells] == ["markdown", "code", "code"]
    assert sources(notebook) == ["## Title", "x = 1\ny = 2", "x = 1\ny = 2"]


@pytest.mark.parametrize("version", [2, 5, 99, "4", None, []])
def test_an_unknown_version_with_cells_is_read(read, version):
    assert sources(read({**NOTEBOOK, "nbformat": version})) == ["x = 1"]


@pytest.mark.parametrize("cell, kind, source", [
    ({}, "raw", ""),
    ({"cell_type": "code"}, "code", ""),
    ({"cell_type": "code", "source": None}, "code", ""),
    ({"cell_type": "code", "source": ["a", None, 3, "b"]}, "code", "ab"),
    ({"cell_type": "code", "source": {"a": 1}}, "code", ""),
    ({"cell_type": "markdown", "source": "a", "metadata": None, "attachments": [], "id": 7}, "markdown", "a"),
    ({"cell_type": "sql", "source": "a"}, "raw", "a"),
    ({"cell_type": ["code"], "source": "a"}, "raw", "a"),
    ({"cell_type": "code", "source": "a", "metadata": [], "outputs": "none", "id": "not valid"}, "code", "a"),
    ("def f(): pass", "raw", "def f(): pass"),
    (["a\n", "b"], "raw", "a\nb"),
    (None, "raw", ""),
    (3.5, "raw", ""),
])
def test_cells_with_missing_or_wrong_fields_are_read(read, cell, kind, source):
    notebook = read(with_cells(cell, CELL))
    assert (notebook.cells[0].cell_type, notebook.cells[0].source) == (kind, source)
    nbformat.validate(notebook)


@pytest.mark.parametrize("output", [None, 1, {}, {"output_type": "stream"}, {"output_type": "error", "traceback": None, "ename": 1},
                                    {"output_type": "display_data", "data": None}, {"output_type": "stream", "text": [1, "a"]}])
def test_malformed_outputs_are_read(read, output):
    nbformat.validate(read(with_cells({**CELL, "outputs": [output]})))


def test_nan_and_infinity_are_left_out(read):
    text = TEXT.replace('"metadata": {}', '"metadata": {"a": NaN, "b": -Infinity, "c": 1e999, "d": 1.5}', 1)
    assert read(text).metadata == {"a": None, "b": None, "c": None, "d": 1.5}


def test_half_a_character_can_be_written_again(read):
    assert nbformat.writes(read(TEXT.replace("x = 1", r"x = '\ud83d'"))).encode()


def test_deep_metadata_is_cut(read):
    deep = {}
    for _ in range(300):
        deep = {"a": deep}
    nbformat.writes(read(with_cells({**CELL, "metadata": {"deep": deep}})))


def test_metadata_named_like_methods_does_no_harm(read):
    odd = {"items": 1, "get": 2, "copy": 3, "_allownew": False, "keys": None, "__class__": "x"}
    assert read(with_cells({**CELL, "metadata": odd}, metadata=odd)).cells[0].metadata == odd


def test_only_outputs_that_cannot_run_in_a_browser_are_kept(read):
    data = {"text/html": "<script>alert(1)</script>", "image/svg+xml": "<svg/>", "application/javascript": "1", "text/plain": ["a ", "figure"],
            "image/png": "iVBOR\nw0K=", "image/jpeg": '"><script>'}
    notebook = read(with_cells({**CELL, "outputs": [{"output_type": "execute_result", "data": data, "metadata": {}, "execution_count": 1}]}))
    assert notebook.cells[0].outputs[0].data == {"text/plain": "a figure", "image/png": "iVBOR\nw0K="}


def test_large_outputs_are_cut_out_before_parsing():
    brackets = json.dumps({**CELL, "source": '"outputs": [', "outputs": [{"text": ["]\"[\\" * 300_000]}]})
    text = '{"cells": [' + brackets + "," + json.dumps(CELL) + "]}"
    left = ipynb._without_large_outputs(text)
    assert len(left) < 1000 and json.loads(left) == {"cells": [{**CELL, "source": '"outputs": ['}, CELL]}


def test_a_hundred_megabytes_of_output_are_read(read):
    line = json.dumps("loss 0.1234 \u001b[A" * 5)
    output = '{"output_type": "stream", "name": "stdout", "text": [' + ",".join([line] * (100_000_000 // len(line))) + "]}"
    text = json.dumps(with_cells(CELL, {**CELL, "source": "y = 2"})).replace('"outputs": []', '"outputs": [' + output + "]", 1)
    assert len(text) > 95e6
    assert sources(read(text)) == ["x = 1", "y = 2"]


def test_too_large_a_file_is_not_even_opened(tmp_path):
    with open(tmp_path / "lab.ipynb", "wb") as file:
        file.truncate(ipynb.MAX_BYTES + 1)
    with pytest.raises(Unreadable, match=re.escape("is 200 MB large, and at most 200 MB are read; clear the outputs")):
        read_notebook(tmp_path / "lab.ipynb")


def test_a_memory_bomb_outside_the_outputs_is_refused(read, monkeypatch):
    monkeypatch.setattr(ipynb, "LARGE", 1000)
    monkeypatch.setattr(ipynb, "MAX_VALUES", 1000)
    with pytest.raises(Unreadable, match="is too large even without its outputs"):
        read('{"cells": [], "metadata": {"a": [' + "[]," * 2000 + "[]]}}")


def test_a_cut_off_large_file_is_named_as_such(read, monkeypatch):
    monkeypatch.setattr(ipynb, "LARGE", 1000)
    with pytest.raises(Unreadable, match="is incomplete: it breaks off after"):
        read('{"cells": [{"cell_type": "code", "outputs": [' + '"abc",' * 2000)


@pytest.mark.parametrize("error, code", [("", 0), ("lab.ipynb is a PDF file, not a notebook.", 3)])
def test_grading_exits_with_3_if_a_submission_was_unreadable(tmp_path, monkeypatch, error, code):
    from typer.testing import CliRunner

    from autograder import cli
    (tmp_path / "ada.ipynb").write_text(TEXT)
    result = {"student": "ada", "score": 0, "max_score": 1, "tests": [], "seconds": 0, "isolation": "", "error": error, "notes": ["repaired"]}
    monkeypatch.setattr(cli, "_grade", lambda *args, **options: [result])
    done = CliRunner().invoke(cli.app, ["grade", "11", str(tmp_path)])
    assert done.exit_code == code and "1 of them repaired" in done.output
