"""Late penalties, through nbgrader's own plugin point; nbgrader_config.py sets how much."""
from __future__ import annotations

import math
from datetime import timezone
from pathlib import Path

from nbgrader.plugins import LateSubmissionPlugin
from traitlets import Float, Unicode

from autograder.roster import load_roster


class LatePenalty(LateSubmissionPlugin):
    """A percentage of the score for each day that begins after the due date and the minutes of grace.

    nbgrader computes it when a submission is graded: grade again after marking by hand, which judges nothing anew.
    """
    percent_per_day = Float(0.0, help="Of the score, for each day that has begun; 0: none.").tag(config=True)
    grace_minutes = Float(0.0, help="So much later is still in time.").tag(config=True)
    most_percent = Float(100.0, help="Never more than this.").tag(config=True)
    roster = Unicode("", help="The roster, whose columns named like labs say who may hand in later.").tag(config=True)

    def late_submission_penalty(self, student_id: str, score: float, total_seconds_late: float) -> float | None:
        """Points to take off, or None. Raises RosterError."""
        late = total_seconds_late - self._granted_seconds(student_id) - 60 * self.grace_minutes
        percent = min(math.ceil(late / 86400) * self.percent_per_day, self.most_percent)
        return round(score * percent / 100, 2) if percent > 0 else None

    def _granted_seconds(self, student_id: str) -> float:
        """From the lab's due date to this student's own."""
        if not self.roster:
            return 0.0
        path = Path(self.parent.db_url.removeprefix("sqlite:///")).parent / self.roster     # beside the gradebook
        if not path.is_file():
            return 0.0
        student, lab = load_roster(path).get(student_id), self.parent.assignment_id
        due = self.parent.gradebook.find_assignment(lab).duedate   # in UTC, without saying so
        own = student and student.extension(lab)
        return max(0.0, (own - due.replace(tzinfo=timezone.utc)).total_seconds()) if own and due else 0.0
