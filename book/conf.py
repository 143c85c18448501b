"""Sphinx's settings for the book. `make book` copies this folder, adds the generated pages and runs Sphinx there."""
import importlib
import re
from pathlib import Path

project = "Trainfast"
html_title = "Trainfast"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
exclude_patterns = ["README.md", "_extra"]
smartquotes = False  # much of the text is about code
suppress_warnings = ["myst.header"]  # a lab may go from its title to ###; the page's levels are right all the same

myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_code_prompt_show, nb_code_prompt_hide = "Show the code", "Hide the code"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 90
add_module_names = False

html_theme = "furo"
html_css_files = ["book.css"]
html_extra_path = ["_extra"] if Path(__file__).with_name("_extra").is_dir() else []
html_domain_indices = html_copy_source = html_show_sphinx = html_show_copyright = html_use_index = False
html_permalinks_icon = "#"
# MathJax in one file, with its glyphs as outlines: nothing is loaded from elsewhere.
html_static_path = ["_static", str(Path(importlib.import_module("sphinx-mathjax-offline").__file__).parent / "static/mathjax/tex-svg.js")]
mathjax_path = "tex-svg.js"
mathjax3_config = {"options": {"enableMenu": False}}


def docstring(app, what, name, obj, options, lines: list[str]) -> None:
    """The docstrings are plain text with `names`. Keep code as it is, make tables and lists of columns, escape the rest."""
    blocks = re.split(r"\n\s*\n", "\n".join(lines).strip("\n"))
    lines.clear()
    for block in blocks:
        rows = block.split("\n")
        columns = [re.match(r"(\S.*?) {2,}(\S.*)", row) for row in rows]
        if rows[0].startswith("|"):
            lines += [".. list-table::", "   :header-rows: 1", ""]
            for row in rows[:1] + rows[2:]:
                cells = [escaped(cell.strip()) for cell in row.strip("|").split("|")]
                lines += [f"   * - {cells[0]}", *(f"     - {cell}" for cell in cells[1:])]
            lines.append("")
        elif rows[0].startswith(" "):
            lines += [".. code-block:: " + ("python" if "(" in block else "text"), "", *("    " + row for row in rows), ""]
        elif columns[0]:
            for row, cut in zip(rows, columns):
                if cut:
                    lines += [f"``{cut[1]}``", "    " + escaped(cut[2])]
                else:  # an indented row belongs to the one before, any other ends the list
                    lines += ["    " + escaped(row.strip())] if row.startswith(" ") else ["", escaped(row)]
            lines.append("")
        else:
            lines += [*escaped(block).split("\n"), ""]


def escaped(text: str) -> str:
    return re.sub(r"(`[^`]*`)|([\\*|_])", lambda found: f"`{found[1]}`" if found[1] else "\\" + found[2], text)


def setup(app) -> None:
    app.connect("autodoc-process-docstring", docstring)
