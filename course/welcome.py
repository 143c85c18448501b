"""The page on which JupyterLab opens: which labs there are, how far you are in each, and where to go on.

    python -m course.welcome [options of jupyter lab]      in the folder that has labs/

It is an extension of the Jupyter server, so that each look at the page reads the saved notebooks anew. It needs no
torch, and is there as soon as the server is.
"""
from __future__ import annotations

import html
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from course import syllabus
from course.verdict import VERDICT

DONE = {"passed", "deferred"}  # what this device cannot judge holds nobody up


@dataclass(frozen=True)
class Progress:
    """How far a saved notebook is. Optional exercises are apart; points are those of the visible tests."""
    exercises: int
    done: int
    optional: int
    optional_done: int
    points: float
    max_points: float
    begun: bool

    def __str__(self) -> str:
        more = f" and {self.optional_done} optional" if self.optional_done else ""
        return f"{self.done} of {self.exercises} exercises{more}, {self.points:g} of {self.max_points:g} points"


def progress(notebook: Path) -> Progress:
    """What the notebook's own verdicts say. Raises OSError, ValueError, or whatever a damaged one leads to."""
    worth: dict[str, float] = {}
    for name, points in re.findall(r'^@exercise\("(\w+)", points=([\d.]+)', (notebook.parent / "test_visible.py").read_text(encoding="utf-8"), re.MULTILINE):
        worth[name] = worth.get(name, 0) + float(points)
    verdicts = {}  # the last one of each exercise counts
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            if (verdict := output.get("data", {}).get(VERDICT)) and verdict["exercise"] in worth:
                verdicts[verdict["exercise"]] = verdict
    done = {name for name, verdict in verdicts.items() if {result["status"] for result in verdict["results"]} <= DONE}
    required = {name for name, points in worth.items() if points}
    return Progress(len(required), len(required & done), len(worth) - len(required), len(done - required),
                    sum(verdict["points"] for verdict in verdicts.values()), sum(worth.values()), bool(verdicts))


def page(root: Path, base_url: str = "/") -> str:
    """The page of the course in `root`. Its links open in one tab of their own, so that the page stays."""
    labs = syllabus.load()
    here = [lab for lab in labs.labs if (root / lab.notebook).is_file()]
    rows, part = [], None
    for lab in here:
        if lab.part != part:
            part = lab.part
            rows.append(f'<tr class="part"><th scope="colgroup" colspan="4">{html.escape(labs.parts[part])}</th></tr>')
        rows.append(_row(lab, root, base_url))
    coming = ", ".join(f"{lab.name[:2]} {lab.title}" for lab in labs.labs if lab not in here)
    return PAGE.format(rows="\n".join(rows) or '<tr><td colspan="4">There is no lab here yet. Start <code>make lab</code> '
                       "in the folder of the course.</td></tr>",
                       coming=f"<p>To come: {html.escape(coming)}.</p>" if coming else "",
                       instructors=INSTRUCTORS.format(base=html.escape(base_url)) if (root / "nbgrader_config.py").is_file() else "")


def _row(lab: syllabus.Lab, root: Path, base_url: str) -> str:
    try:
        how_far = progress(root / lab.notebook)
        bar = f'<progress max="{how_far.exercises}" value="{how_far.done}" aria-hidden="true"></progress><br>'
        state = bar + (str(how_far) if how_far.begun else f"not begun: {how_far.exercises} exercises")
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        state = "this notebook cannot be read"
    after = f"after {', '.join(name[:2] for name in lab.after)}; " if lab.after else ""
    return (f'<tr><th scope="row"><a href="{html.escape(base_url)}lab/tree/{quote(lab.notebook)}" target="trainfast">'
            f'{lab.name[:2]} · {html.escape(lab.title)}</a><br><span>{html.escape(lab.question)}</span></th>'
            f'<td class="state">{state}</td><td>{lab.hours:g}&nbsp;h</td><td>{html.escape(after + lab.device)}</td></tr>')


def _load_jupyter_server_extension(server) -> None:
    from jupyter_server.base.handlers import JupyterHandler
    from tornado.web import authenticated

    class Welcome(JupyterHandler):
        @authenticated
        def get(self):
            self.set_header("Cache-Control", "no-store")
            self.finish(page(Path(server.root_dir), self.base_url))

    server.web_app.add_handlers(".*$", [(f"{server.base_url}welcome", Welcome)])


def _jupyter_server_extension_points() -> list[dict]:
    return [{"module": "course.welcome"}]


def main(arguments: list[str]) -> None:
    """JupyterLab on this page. The server's root is the course, where the formgrader needs it; files open in labs/."""
    # JupyterLab's own question about news, and its search for updates, are off, unless the student turns them on.
    ours = str(Path(__file__).parent / "jupyter")
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(filter(None, [os.environ.get("JUPYTER_CONFIG_PATH"), ours]))
    from jupyterlab.labapp import LabApp
    options = [f"--ServerApp.root_dir={Path.cwd()}", "--ServerApp.jpserver_extensions={'course.welcome': True}",
               "--LabApp.default_url=/welcome"]
    if Path("labs").is_dir():
        options.append("--FileContentsManager.preferred_dir=labs")
    if getattr(os, "geteuid", lambda: 1)() == 0:
        options.append("--allow-root")
    LabApp.launch_instance([*options, *arguments])


INSTRUCTORS = """\
<h2>For instructors</h2>
<p><a href="{base}formgrader" target="formgrader">Formgrader</a>: scores, feedback and written answers of what
<code>autograder grade</code> has judged. In JupyterLab it is in the menu <em>Nbgrader</em>.</p>
"""
PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Trainfast</title>
<style>
:root {{ color-scheme: light dark; --ink: #1f2328; --soft: #57606a; --line: #d0d7de; --link: #0b5cad; --done: #2e8540; --page: #fff }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e6e6e6; --soft: #a8b0b8; --line: #444c56; --link: #6cb2ff; --done: #56b870; --page: #1c1f23 }}
}}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1.5rem; color: var(--ink); background: var(--page) }}
h1 {{ margin-bottom: 0 }} h2 {{ font-size: 1.1rem; margin: 2rem 0 0 }} p {{ max-width: 46rem; margin: .4rem 0 }}
table {{ border-collapse: collapse; width: 100%; margin: 1.5rem 0 1rem }}
th, td {{ text-align: left; vertical-align: top; padding: .6rem 1.2rem .6rem 0; font-weight: normal; border-top: 1px solid var(--line) }}
thead th, .part th, th span {{ color: var(--soft); font-size: .9rem }}
thead th, .part th {{ border: 0; padding-bottom: .2rem }} .part th {{ padding-top: 1rem }}
th a {{ font-weight: 600 }} a {{ color: var(--link) }} .state {{ min-width: 18rem }} td {{ font-size: .95rem }}
progress {{ width: 11rem; height: .7rem; accent-color: var(--done) }}
</style>
</head>
<body>
<h1>Trainfast</h1>
<p>Write, from scratch, what makes neural networks train faster, smaller and without blowing up, and measure whether it does.</p>
<table>
<thead><tr><th scope="col">Lab</th><th scope="col">Done, as last saved</th><th scope="col">Time</th><th scope="col">Needs</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
{coming}
<h2>In a lab</h2>
<p>Run the setup cell first. Write a function, run the check below it, and read what it says. Save, and this page knows.</p>
<p><strong>Validate</strong>, a button above the open notebook, runs all of it afresh and says which checks fail: do that
before you hand it in. It takes as long as the notebook does.</p>
{instructors}
<script>
// Seen again, it looks again.
document.addEventListener("visibilitychange", () => document.hidden || location.reload());
addEventListener("pageshow", event => event.persisted && location.reload());
</script>
</body>
</html>
"""

if __name__ == "__main__":
    main(sys.argv[1:])
