"""nbgrader's own commands on the same path: `nbgrader autograde` repairs and judges as `autograder grade` does.

nbgrader_config.py names these in place of the parts of nbgrader that read and execute a submission in the open.
"""
from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from nbconvert.exporters import NotebookExporter
from nbformat import NotebookNode
from nbformat.v4 import new_notebook
from nbgrader.preprocessors import NbGraderPreprocessor

from autograder.gradebook import SCORES, SaveVerdicts, annotate, scores_of
from autograder.ledger import specification_stamp
from autograder.jobs import grade_repaired, unjudged
from autograder.judge import Lab, Verdict
from autograder.repair import repair
from autograder.source import find_root
from autograder.submission import Unreadable, read_notebook

FOUND = "trainfast_submission"  # in the metadata between the two preprocessors: what was repaired, or why it is unreadable


class SubmissionExporter(NotebookExporter):
    """Reads a submission whatever state it is in; one that is unreadable goes on as an empty notebook."""

    def from_filename(self, filename: str, resources: dict | None = None, **kw) -> tuple[str, dict]:
        try:
            notebook, reason = read_notebook(Path(filename)), ""
        except Unreadable as error:
            notebook, reason = new_notebook(), str(error)
        return self.from_notebook_node(notebook, {**(resources or {}), FOUND: reason}, **kw)


class RepairSubmission(NbGraderPreprocessor):
    """In place of OverwriteCells and DeduplicateIds: every released cell once, whatever happened to it."""

    def preprocess(self, nb: NotebookNode, resources: dict) -> tuple[NotebookNode, dict]:
        lab, unreadable = _lab(resources), resources[FOUND]
        repaired = repair(lab.released if unreadable else nb, lab.released)
        for note in [unreadable] if unreadable else repaired.notes:
            self.log.warning("%s: %s", resources["nbgrader"]["student"], note)
        repaired.notebook.metadata[FOUND] = {"unreadable": unreadable, "notes": repaired.notes}
        return repaired.notebook, resources


class JudgeSubmission(NbGraderPreprocessor):
    """In place of Execute: the submission runs in the sandbox, and the verdicts become the check cells' outputs."""

    def preprocess(self, nb: NotebookNode, resources: dict) -> tuple[NotebookNode, dict]:
        lab, student, found = _lab(resources), resources["nbgrader"]["student"], nb.metadata.pop(FOUND)
        if found["unreadable"]:
            verdict = Verdict(student, lab.name, error=found["unreadable"])
            verdict.tests = unjudged(lab, verdict.error)
            result = verdict.to_dict()
        else:
            result = grade_repaired(lab, student, repair(nb, lab.released)) | {"notes": found["notes"]}
            self.log.info("%s: %g of %g points, %s", student, result["score"], result["max_score"], result["isolation"])
        resources[SCORES] = scores_of(result)
        return annotate(nb, result), resources


def _lab(resources: dict) -> Lab:
    """The lab of the course in which nbgrader works (it makes that the working folder), as its files are now."""
    root, name = find_root(), resources["nbgrader"]["assignment"]
    return _loaded(root, name, specification_stamp(root, name))


@lru_cache(maxsize=2)
def _loaded(root: Path, name: str, stamp: str) -> Lab:
    return Lab(root, name)


__all__ = ["JudgeSubmission", "RepairSubmission", "SaveVerdicts", "SubmissionExporter"]
