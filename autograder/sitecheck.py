"""A finished site looked over: every picture has words, every link leads somewhere, nothing comes from the network, no
secret line is shown."""
from __future__ import annotations

import re
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from autograder.leaks import Secrets

LINES = {*"br p div pre li dt dd td th tr h1 h2 h3 h4 h5 h6".split()}  # tags that begin a new line


class Page(HTMLParser):
    """What a page shows, links to and loads."""

    def __init__(self, text: str):
        super().__init__()
        self.text, self.ids, self.links, self.loads, self.silent = "", set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        found = dict(attributes)
        self.text += "\n" * (tag in LINES)
        self.ids |= {found["id"]} if found.get("id") else set()
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        elif tag == "link" and not {"canonical", "next", "prev", "search", "index"} & set((found.get("rel") or "").split()):
            self.loads.append(found.get("href") or "")
        elif tag in ("img", "script", "iframe", "source", "video", "audio", "embed") and found.get("src"):
            self.loads.append(found["src"])
        if tag == "img" and not (found.get("alt") or "").strip():
            self.silent.append(found.get("src", "")[:60])

    def handle_data(self, data: str) -> None:
        self.text += data


def problems(site: Path, secrets: Iterable[Secrets] = ()) -> list[str]:
    """What is wrong with the site: a picture without words, a broken link, something loaded from elsewhere, a leak."""
    found, pages = [], {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        at = path.relative_to(site).as_posix()
        found += [f"{at}: a picture without alternative text: {source}" for source in page.silent]
        found += [f"{at}: loads {address} from the network" for address in page.loads if _remote(address)]
        for address in [*page.links, *page.loads]:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                found.append(f"{at}: leads to {address}, which is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                found.append(f"{at}: leads to {address}, and that page has no such place")
    for path in sorted(p for p in site.rglob("*") if p.suffix in (".html", ".js", ".css", ".json", ".txt", ".py", ".ipynb", ".inv")):
        text = pages[path].text if path in pages else path.read_text(encoding="utf-8", errors="replace")
        if path.suffix == ".css":
            found += [f"{path.relative_to(site)}: loads {address} from the network"
                      for address in re.findall(r"""(?:url\(|@import)\s*["']?([^"')\s;]+)""", text) if _remote(address)]
        found += [f"{path.relative_to(site)}: shows a line of {leak.origin}" for secret in secrets if (leak := secret.find(text))]
    return found


def _remote(address: str) -> bool:
    return address.startswith("//") or urlsplit(address).scheme in ("http", "https", "ftp")
