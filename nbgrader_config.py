"""nbgrader for this course: its own commands, with repair and judging by the autograder.

    nbgrader generate_assignment 11_saddle_points     from the generated source/ (autograder build --source)
    nbgrader autograde 11_saddle_points               the same scores as `autograder grade`
    nbgrader generate_feedback 11_saddle_points
    nbgrader export
"""
from nbgrader.preprocessors import AssignLatePenalties, CheckCellMetadata, ClearOutput, OverwriteKernelspec

from autograder.nbgrader_plugin import JudgeSubmission, RepairSubmission, SaveVerdicts

c = get_config()  # noqa: F821: nbgrader defines it

c.CourseDirectory.course_id = "trainfast"
c.CourseDirectory.source_directory = "source"      # generated, holds notebooks and what students may have
c.CourseDirectory.ignore = ["*.pyc", "__pycache__", ".ipynb_checkpoints", "*.kept*.ipynb"]

c.Autograde.sanitize_preprocessors = [ClearOutput, RepairSubmission, OverwriteKernelspec, CheckCellMetadata]
c.Autograde.autograde_preprocessors = [JudgeSubmission, SaveVerdicts, AssignLatePenalties, CheckCellMetadata]
