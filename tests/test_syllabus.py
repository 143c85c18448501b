"""syllabus.toml, and what is made from it."""
import subprocess
import sys
from pathlib import Path

import pytest

from course import syllabus

ROOT = Path(__file__).resolve().parents[1]
CORE = ["11_saddle_points", "12_normalization", "15_gradient_noise", "21_pruning", "23_distillation", "24_quantization",
        "32_block_sparsity", "34_bf16_divergence", "41_zero"]
ONE_LAB = """
[parts]
1 = "Optimisation"
[labs.11_first]
title = "First"
question = "Why?"
hours = 2
device = "any CPU"
"""


def test_all_core_labs_are_listed_each_in_its_part():
    found = syllabus.load()
    assert [lab.name for lab in found.labs if lab.name in CORE] == CORE
    assert [found.parts[found.lab(name).part] for name in ("15_gradient_noise", "41_zero")] == ["Optimisation", "Many devices"]


def test_labs_that_are_not_planned_are_there_and_the_others_are_not():
    there = {path.name for path in (ROOT / "solutions").iterdir() if path.name[:2].isdigit()}
    assert {lab.name for lab in syllabus.load().labs if not lab.planned} == there


def test_no_lab_comes_after_one_that_is_not_before_it():
    for lab in syllabus.load().labs:
        assert all(name < lab.name for name in lab.after)


def test_the_readme_shows_the_table_as_the_syllabus_has_it():
    text = (ROOT / "README.md").read_text()
    assert syllabus.table(syllabus.load()) in text
    assert syllabus.with_table(text) == text
    stale = text.replace("Saddle points", "Sadle points")
    assert stale != text and syllabus.with_table(stale) == text


@pytest.mark.parametrize("old, new, words", [
    ("11_first", "first", "first: a lab is called NN_topic"),
    ("11_first", "91_first", "91_first: .* first digit is one of the parts"),
    ("hours = 2\n", "", "11_first: missing 1 required positional argument: 'hours'"),
    ("hours", "days", "11_first: got an unexpected keyword argument 'days'"),
    ("hours = 2", 'hours = 2\nafter = ["10_gone"]', "11_first: comes after 10_gone, which is not in the list")])
def test_an_error_in_the_list_names_the_lab(tmp_path, old, new, words):
    path = tmp_path / "syllabus.toml"
    path.write_text(ONE_LAB.replace(old, new))
    with pytest.raises(ValueError, match=words):
        syllabus.load(path)


def test_listing_the_labs_takes_no_torch():
    code = "import sys; from course import syllabus; syllabus.load(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
