"""The ledger of claims is complete, and says no more than was measured."""
import json
import re

import pytest

from course import claims, syllabus
from course.claims import OPEN, VERDICTS, Claim

LEDGER = claims.load()


def test_every_claim_belongs_to_a_lab_or_is_a_slip():
    labs = set(re.findall(r"^\[labs\.(\w+)\]", syllabus.FILE.read_text(encoding="utf-8"), re.MULTILINE))
    for claim in LEDGER.values():
        assert claim.lab in labs or re.fullmatch(r"\d\d_[a-z_]+", claim.lab), claim.id
        assert claim.id.startswith((claim.lab[:2] + "-", "slip-")), claim.id
        assert set(claim.source) <= set("ABCDE, "), claim.id
        assert claim.claim.endswith(".") and claim.verdict in VERDICTS, claim.id


def test_the_first_lab_has_measured_all_its_claims():
    assert all(c.verdict != OPEN for c in LEDGER.values() if c.lab == "11_saddle_points" and not c.id.startswith("slip-"))


def test_all_labs_of_the_design_have_claims():
    parts = {claim.lab[:2] for claim in LEDGER.values()}
    assert parts >= set("11 12 13 14 15 16 17 21 22 23 24 25 26 27 31 32 33 34 41 42 43 51 52 61".split())


@pytest.mark.parametrize("row, complaint", [
    ({"verdict": "true"}, "none of"),
    ({"verdict": "holds"}, "also needs protocol, measured, device, date"),
    ({"verdict": "holds", "protocol": "p", "measured": "m", "device": "d"}, "also needs date"),
    ({"measured": "m"}, "cannot be"),
    ({"value": 3.0, "interval": (4.0, 5.0)}, "not inside"),
    ({"value": float("nan"), "interval": (4.0, 5.0)}, "not inside"),
])
def test_an_incomplete_row_is_refused_by_name(row, complaint):
    with pytest.raises(ValueError, match=f"(?s)11-x: .*{complaint}"):
        Claim(id="11-x", claim="c.", source="A", lab="11_saddle_points", **row)


def test_an_unknown_or_missing_field_is_refused_by_name(tmp_path):
    file = tmp_path / "claims.toml"
    file.write_text('[claims.11-x]\nclaim = "c."\nsource = "A"\n')
    with pytest.raises(ValueError, match="11-x: .*lab"):
        claims.load(file)
    file.write_text('[claims.11-x]\nclaim = "c."\nsource = "A"\nlab = "11_saddle_points"\ncolour = "red"\n')
    with pytest.raises(ValueError, match="11-x: .*colour"):
        claims.load(file)


def test_outside_a_notebook_show_prints_text_course_and_reader(capsys, monkeypatch):
    claims.show("11-sgd-stalls", measured="314 <steps>")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["Text", "Course", "You"]
    assert lines[2].endswith("314 <steps>")
    to_come = claims.Claim(id="99-to-come", claim="c.", source="A", lab="99_to_come")
    monkeypatch.setattr(claims, "load", lambda: {to_come.id: to_come})
    claims.show("99-to-come")
    assert capsys.readouterr().out.splitlines()[1:] == ["Course   Not measured yet."]


def test_in_a_notebook_show_is_escaped_and_has_no_colour_of_its_own(monkeypatch):
    import IPython
    import IPython.display
    shown = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: object())
    monkeypatch.setattr(IPython.display, "display", lambda bundle, raw: shown.append(bundle))
    claims.show("11-sgd-stalls", measured="<b>314</b>")
    page = shown[0]["text/html"]
    assert "&lt;b&gt;314" in page and "<b>" not in page
    assert not re.search(r"#[0-9a-fA-F]{3}|rgb|white;|black", page)
    assert shown[0]["text/plain"].count("\n") == 2


def test_a_wrong_id_names_the_right_ones():
    with pytest.raises(KeyError, match="11-sgd-stalls"):
        claims.show("11-no-such-claim")


def test_full_run_prefers_the_file_beside_the_notebook(tmp_path, monkeypatch):
    assert claims.full_run("11_saddle_points")["escape"]["steps"]
    (tmp_path / "full_run.json").write_text(json.dumps({"mine": 1}))
    monkeypatch.chdir(tmp_path)
    assert claims.full_run("11_saddle_points") == {"mine": 1}
    with pytest.raises(FileNotFoundError, match="99_nothing"):
        (tmp_path / "full_run.json").unlink()
        claims.full_run("99_nothing")


def test_in_a_labs_folder_another_labs_results_are_still_its_own(tmp_path, monkeypatch):
    folder = tmp_path / "24_quantization"
    folder.mkdir()
    (folder / "full_run.json").write_text(json.dumps({"mine": 1}))
    monkeypatch.chdir(folder)
    assert claims.full_run("24_quantization") == {"mine": 1}
    assert "escape" in claims.full_run("11_saddle_points")
