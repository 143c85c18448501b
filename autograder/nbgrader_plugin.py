"""nbgrader's own commands on the same path: `nbgrader autograde` repairs and judges as `autograder grade` does.

nbgrader_config.py names these two in place of nbgrader's preprocessors that execute a submission in the open.
"""
from __future__ import annotations

from nbformat import NotebookNode
from nbgrader.preprocessors import NbGraderPreprocessor

from autograder.gradebook import SaveVerdicts, annotate, scores_of
from autograder.grade import grade_notebook, lab_of
from autograder.repair import repair


class RepairSubmission(NbGraderPreprocessor):
    """In place of OverwriteCells and DeduplicateIds: every released cell once, whatever happened to it."""

    def preprocess(self, nb: NotebookNode, resources: dict) -> tuple[NotebookNode, dict]:
        repaired = repair(nb, lab_of(resources["nbgrader"]["assignment"]).released)
        for note in repaired.notes:
            self.log.warning("%s: %s", resources["nbgrader"]["student"], note)
        return repaired.notebook, resources


class JudgeSubmission(NbGraderPreprocessor):
    """In place of Execute: the submission runs in the sandbox, and the verdicts become the check cells' outputs."""

    def preprocess(self, nb: NotebookNode, resources: dict) -> tuple[NotebookNode, dict]:
        result = grade_notebook(resources["nbgrader"]["assignment"], resources["nbgrader"]["student"], nb)
        resources["trainfast_scores"] = scores_of(result)
        return annotate(nb, result), resources


__all__ = ["JudgeSubmission", "RepairSubmission", "SaveVerdicts"]
