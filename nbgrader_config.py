"""nbgrader for this course: its own commands and formgrader, with repair and judging by the autograder.

    autograder build --source                         makes source/ from solutions/
    nbgrader generate_assignment 11_saddle_points     release/, equal to labs/
    nbgrader autograde 11_saddle_points               the same scores as `autograder grade 11 submitted`, one by one
    nbgrader generate_feedback 11_saddle_points
    nbgrader export
    jupyter lab                                       here, or where --out was; then Nbgrader, Formgrader

`autograder grade` writes gradebook.db and autograded/ by these settings too. A lab's speed target that could not be
measured counts nothing, and the formgrader asks for a person.
"""
import os
import sys
import warnings

c = get_config()  # noqa: F821: nbgrader defines it

# nbgrader calls alembic, which lies beside Python, also where that environment is not activated.
if (here := os.path.dirname(sys.executable)) not in os.environ["PATH"].split(os.pathsep):
    os.environ["PATH"] = here + os.pathsep + os.environ["PATH"]
warnings.filterwarnings("ignore", "Object of type <Submitted")  # nbgrader's own queries, three times a submission

c.CourseDirectory.course_id = "trainfast"
c.CourseDirectory.ignore = [".ipynb_checkpoints", "*.pyc", "__pycache__", "feedback"]

# By name: nbgrader imports them only for what needs them.
c.Autograde.exporter_class = "autograder.nbgrader_plugin.SubmissionExporter"
c.Autograde.sanitize_preprocessors = [
    "autograder.nbgrader_plugin.RepairSubmission",
    "nbgrader.preprocessors.OverwriteKernelspec",
    "nbgrader.preprocessors.CheckCellMetadata",
]
c.Autograde.autograde_preprocessors = [
    "autograder.nbgrader_plugin.JudgeSubmission",
    "autograder.nbgrader_plugin.SaveVerdicts",
    "nbgrader.preprocessors.AssignLatePenalties",
    "nbgrader.preprocessors.CheckCellMetadata",
]

# Nothing that a student wrote runs in the browser of who grades it.
c.HTMLExporter.filters = {"markdown2html": "autograder.pages.harmless_markdown"}

# Due dates are set in the formgrader, or with: nbgrader db assignment add 11_saddle_points --duedate="2030-05-01 18:00 UTC"
c.AssignLatePenalties.plugin_class = "autograder.late.LatePenalty"
c.LatePenalty.percent_per_day = 0
c.LatePenalty.grace_minutes = 10
c.LatePenalty.most_percent = 100
c.LatePenalty.roster = "roster.csv"     # extensions: id,name,11 and ada,"Lovelace, Ada",2030-05-08
