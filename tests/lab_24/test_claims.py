"""What the ledger and the lab's text say is what its full run measured."""
import json
from pathlib import Path

import pytest

from course import claims

FULL = json.loads((Path(__file__).resolve().parents[2] / "solutions" / "24_quantization" / "full_run.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name, found", [("24-int8-small", FULL["post"]["minus float32"]["channel"]["8"]),
                                         ("24-qat-rescues", FULL["aware"]["with rounding minus without"]["3"])])
def test_values_and_intervals_are_those_of_the_full_run(name, found):
    claim = claims.load()[name]
    assert (claim.value, *claim.interval) == pytest.approx([100 * v for v in found], abs=0.06)


def test_the_percentages_of_the_text_are_those_of_the_full_run():
    claim, accuracy = claims.load()["24-qat-rescues"], FULL["aware"]["accuracy"]
    for arm in ("trained on with rounding", "trained on, then rounded", "rounded"):
        for bits in "432":
            assert f"{100 * accuracy[arm][bits][0]:.1f}" in claim.measured
