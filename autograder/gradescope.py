"""A lab as a Gradescope autograder: the zip to upload, and what runs there.

Gradescope unpacks the zip into /autograder/source, runs setup.sh once, and run_autograder for each submission, which
it puts into /autograder/submission; it reads /autograder/results/results.json.
"""
from __future__ import annotations

import argparse
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from autograder.results import write_json

VISIBILITIES = ("visible", "after_due_date", "after_published", "hidden")
# AUTOGRADER_ROOT stands for another place than Gradescope's, for trying it out.
SETUP = """\
#!/usr/bin/env bash
# Once, as root, when Gradescope builds the image. Choose Ubuntu 22.04 or later.
set -euo pipefail
root="${AUTOGRADER_ROOT:-/autograder}"
"$root/venv/bin/python" -c "import torch, triton, nbformat" 2>/dev/null && exit

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
apt-get update -qq
apt-get install -y -qq --no-install-recommends bubblewrap python3 python3-venv
new_enough python3 || apt-get install -y -qq --no-install-recommends python3.11 python3.11-venv
python=python3
new_enough python3 || python=python3.11

"$python" -m venv "$root/venv"
# torch without CUDA: Gradescope has no GPU, and that is a tenth of the size.
install() { "$root/venv/bin/pip" install --quiet --disable-pip-version-check -c "$root/source/constraints.txt" "$@"; }
install --extra-index-url https://download.pytorch.org/whl/cpu torch torchvision
install -e "$root/source" nbformat
"""
RUN = """\
#!/usr/bin/env bash
set -euo pipefail
root="${{AUTOGRADER_ROOT:-/autograder}}"
cd "$root/source"
exec "$root/venv/bin/python" -m autograder.gradescope "$root" {lab} --hidden {hidden}
"""


def write_zip(root: Path, lab: str, out: Path, hidden: str = "after_published") -> list[str]:
    """Write the zip; returns lines to print. `hidden` is when students see the results of hidden tests."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in [("setup.sh", SETUP.encode()), ("run_autograder", RUN.format(lab=lab, hidden=hidden).encode()), *_files(root, lab)]:
            entry = zipfile.ZipInfo(name)   # with a fixed date: the same files make the same zip
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o755 if name in ("setup.sh", "run_autograder") else 0o644) << 16
            archive.writestr(entry, data)
    from course.spec.load import load
    spec = load(root / "solutions" / lab, hidden=True)
    points, deferred = sum(test.points for test in spec.tests if not test.requires()), sum(target.points for target in spec.speeds if target.requires())
    points += sum(target.points for target in spec.speeds) - deferred
    return [f"wrote {out}. It holds the hidden tests and the solutions of {lab}: for Gradescope only.",
            f"In Gradescope, give the assignment {points:g} autograder points; students hand in {lab[3:]}.ipynb.",
            "If Gradescope's container forbids namespaces, a submission is not isolated there and could read these files: "
            "what each run prints, for instructors only, says so."]


def _files(root: Path, lab: str) -> Iterator[tuple[str, bytes]]:
    from autograder.build import unseen
    from autograder.grade import ROOT
    course = root if (root / "course").is_dir() else ROOT
    for base, folder in [(course, "course"), (course, "autograder"), (root, f"solutions/{lab}"), (root, f"labs/{lab}")]:
        for path in sorted((base / folder).rglob("*")):
            if path.is_file() and not unseen(path.relative_to(base)) and "_labs" not in path.parts:
                yield path.relative_to(base).as_posix(), path.read_bytes()
    for name in ("pyproject.toml", "constraints.txt", "README.md"):
        yield name, (course / name).read_bytes()


# ---------------------------------------------------------------- in Gradescope's container

def run(root: Path, lab: str, hidden: str) -> dict:
    """Judge what is in root/submission and write root/results/results.json; that as a dict."""
    from autograder.grade import Submission, grade
    notebook, problem = find_notebook(root / "submission", lab[3:])
    if notebook is None:
        content = {"score": 0, "output": problem, "tests": []}
    else:
        with tempfile.TemporaryDirectory() as scratch:
            result, = grade(lab, [Submission("submission", notebook)], Path(scratch), jobs=1, root=root / "source")
        print(f"{notebook.name}: {result['score']:g} of {result['max_score']:g}; {result['isolation']}")  # for the instructor
        content = as_results(result, hidden)
    write_json(root / "results" / "results.json", content)
    return content


def find_notebook(folder: Path, topic: str) -> tuple[Path | None, str]:
    """The lab's notebook among what was handed in, or why there is none."""
    found = sorted(path for path in folder.rglob("*.ipynb") if not any(part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts))
    named = [path for path in found if path.name == f"{topic}.ipynb"] or found
    if len(named) == 1:
        return named[0], ""
    there = ", ".join(path.name for path in found) or "no .ipynb file"
    return None, f"Hand in one notebook, {topic}.ipynb. There is {there}."


def as_results(result: dict, hidden: str) -> dict:
    """A result as Gradescope shows it. It knows passed and failed only; the messages say the rest."""
    from course.spec.messages import statement
    tests = []
    for test in result["tests"]:
        told = "" if test["status"] in ("passed", "failed") else f" ({test['status']})"
        tests.append({"name": f"{test['exercise']}: {statement(test['name'])}{told}", "score": test["points"], "max_score": test["max_points"],
                      "status": "passed" if test["status"] == "passed" else "failed", "output": test["message"],
                      "visibility": hidden if test["hidden"] else "visible"})
    words = [result["error"], *(f"{note}." for note in result["notes"])]
    return {"score": round(result["score"], 6), "execution_time": round(result["seconds"]), "output": "\n".join(filter(None, words)),
            "visibility": "visible", "stdout_visibility": "hidden", "tests": tests,
            "extra_data": {key: result[key] for key in ("max_score", "device", "isolation", "seed")}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="run_autograder")
    parser.add_argument("root", type=Path)
    parser.add_argument("lab")
    parser.add_argument("--hidden", choices=VISIBILITIES, default="after_published")
    run(**vars(parser.parse_args()))
