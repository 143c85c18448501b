"""What the ledger and the lab's text say is what its full run measured."""
import json
from pathlib import Path

import pytest

from course import claims

LAB = Path(__file__).resolve().parents[2] / "solutions" / "32_block_sparsity"
FULL = json.loads((LAB / "full_run.json").read_text(encoding="utf-8"))
TEXT = " ".join((LAB / "block_sparsity.py").read_text(encoding="utf-8").replace("\n#", "\n").split()).replace("−", "-")


@pytest.mark.parametrize("name, found", [
    ("32-sparse-then-dense", FULL["training"]["minus dense"]["sparse for 70%, then dense"]["mean"]),
    ("32-unstructured-hardware", FULL["products"]["faster"]["anywhere"]["CSR"]["density 0.1"]["128"])])
def test_values_and_intervals_are_those_of_the_full_run(name, found):
    claim = claims.load()[name]
    assert (claim.value, *claim.interval) == pytest.approx(found, abs=0.01)


def test_the_time_of_a_sparse_step_is_that_of_the_full_run():
    ratio, low, high = FULL["step"]["sparse / dense"]
    words = f"a sparse step takes {ratio + 1e-9:.2f} times as long ({low:.2f} to {high:.2f}"
    assert words in claims.load()["32-sparse-then-dense"].measured and words in TEXT


@pytest.mark.parametrize("arm", FULL["training"]["minus dense"])
def test_the_text_tells_the_differences_of_the_full_run(arm):
    assert f"{abs(FULL['training']['minus dense'][arm]['mean'][0]):.2f}" in TEXT


@pytest.mark.parametrize("rule, accuracy", FULL["patterns"]["accuracy"].items())
def test_the_text_tells_the_errors_of_the_full_run(rule, accuracy):
    assert f"{100 * (1 - accuracy[0]):.1f}%" in TEXT


@pytest.mark.parametrize("n, words", [("16", "{:.1f} times as fast"), ("128", "{:.1f} times for 128"), ("512", "{:.1f} times for 512")])
def test_the_model_answer_tells_the_ratios_of_the_full_run(n, words):
    assert words.format(FULL["products"]["faster"]["anywhere"]["CSR"]["density 0.1"][n][0]) in TEXT
