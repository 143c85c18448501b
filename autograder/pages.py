"""Students' own text on the pages that an instructor opens: the formgrader's and the feedback.

Such a page can do all that its reader may do in Jupyter, so nothing that a student wrote may run in it. nbgrader shows
Markdown with whatever HTML is in it; nbgrader_config.py puts `harmless_markdown` in place of that.
"""
from __future__ import annotations

import html
import re

import bleach
import jinja2
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

TAGS = {*"a abbr b blockquote br code dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i img kbd li ol p pre s small span strong "
        "sub summary sup table tbody td th thead tr u ul".split()}
PLAIN = {"a": {"title"}, "img": {"alt", "title", "width", "height"}, "td": {"align"}, "th": {"align"}, "ol": {"start"}}
ADDRESS = re.compile(r"https?:|mailto:|[^:]*$", re.IGNORECASE)
PICTURE = re.compile(r"https?:|[^:]*$|data:image/(png|jpeg|gif);", re.IGNORECASE)
HIGHLIGHTING = re.compile(r"highlight|[a-z][a-z0-9]{0,2}")   # no class that the formgrader's buttons go by


@jinja2.pass_context
def harmless_markdown(context: jinja2.runtime.Context, source: str) -> str:
    """nbconvert's filter markdown2html: formulas, pictures and tables, no scripts, styles or forms."""
    try:
        renderer = IPythonRenderer(escape=False, attachments=context.get("cell", {}).get("attachments", {}), exclude_anchor_links=True)
        page = MarkdownWithMath(renderer=renderer).render(source)
    except Exception:  # an attachment that is not there, and whatever else a text can do to its renderer
        page = f"<pre>{html.escape(source)}</pre>"
    return bleach.clean(page, tags=TAGS, attributes=_harmless, protocols={"http", "https", "mailto", "data"})


def _harmless(tag: str, name: str, value: str) -> bool:
    if name == "class":
        return tag in ("div", "span") and HIGHLIGHTING.fullmatch(value) is not None
    if name in ("href", "src"):
        return bool((PICTURE if tag == "img" else ADDRESS).match(value.strip()))
    return name in PLAIN.get(tag, ())
