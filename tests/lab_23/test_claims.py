"""What the ledger and the lab's text say is what the full runs measured."""
import json
from pathlib import Path

import pytest

from course import claims

SOLUTIONS = Path(__file__).resolve().parents[2] / "solutions"
FULL = json.loads((SOLUTIONS / "23_distillation" / "full_run.json").read_text(encoding="utf-8"))
BITS = json.loads((SOLUTIONS / "24_quantization" / "full_run.json").read_text(encoding="utf-8"))["distilled"]["accuracy"]["distilled"]["loss of accuracy"]["8"]


@pytest.mark.parametrize("name, found", [("23-soft-labels", FULL["sizes"]["accuracy"]["soft minus labels"]["720"]),
                                         ("23-rounds", FULL["shrinking"]["accuracy"]["in rounds minus at once"]["3790"]),
                                         ("23-compounds", [-BITS[0], -BITS[2], -BITS[1]])])
def test_values_and_intervals_are_those_of_the_full_run(name, found):
    claim = claims.load()[name]
    assert (claim.value, *claim.interval) == pytest.approx([100 * v for v in found], abs=0.06)
