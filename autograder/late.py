"""Late penalties, through nbgrader's own plugin point; nbgrader_config.py sets how much."""
from __future__ import annotations

import math

from nbgrader.plugins import LateSubmissionPlugin
from traitlets import Float


class LatePenalty(LateSubmissionPlugin):
    """A percentage of the score for each day that begins after the due date and the minutes of grace.

    nbgrader computes it when a submission is graded: grade again after marking by hand, which judges nothing anew.
    """
    percent_per_day = Float(0.0, help="Of the score, for each day that has begun; 0: none.").tag(config=True)
    grace_minutes = Float(0.0, help="So much later is still in time.").tag(config=True)
    most_percent = Float(100.0, help="Never more than this.").tag(config=True)

    def late_submission_penalty(self, student_id: str, score: float, total_seconds_late: float) -> float | None:
        """Points to take off, or None."""
        days = math.ceil((total_seconds_late - 60 * self.grace_minutes) / 86400)
        percent = min(days * self.percent_per_day, self.most_percent)
        return round(score * percent / 100, 2) if percent > 0 else None
