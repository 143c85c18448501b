"""A code cell as plain Python, and what it defines. Student code is read here and never executed."""
from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import lru_cache

LONGEST = 200_000  # characters; a longer cell is looked at with regular expressions only

# What counts for telling where a statement ends. Possessive (`++`), so that no source can make it slow.
TOKEN = re.compile(r"""
    (?P<skip> [^"'#()\[\]{}\\\n]++ | \#[^\n]*+ | \\\n
    | \"{3}(?:[^"\\]++|\\.|"(?!""))*+(?:"{3})?+  | '{3}(?:[^'\\]++|\\.|'(?!''))*+(?:'{3})?+
    | "(?:[^"\\\n]++|\\.)*+"?+                   | '(?:[^'\\\n]++|\\.)*+'?+ )
    | (?P<opens>[(\[{]) | (?P<closes>[)\]}]) | (?P<ends>\n)""", re.VERBOSE | re.DOTALL)

# IPython's own syntax, possible only where a statement begins, and never valid Python there.
REST = r"(?P<rest>(?:[^\n]*\\\n)*[^\n]*)"
TIMED = re.compile(r"(?P<indent>[ \t]*)%time[ \t]+(?P<statement>(?!-)[^\n]+)")
ASSIGNED = re.compile(rf"(?P<indent>[ \t]*)(?P<target>[^\W\d][\w.]*)[ \t]*=[ \t]*(?P<mark>[!%]){REST}")
MAGIC = re.compile(rf"(?P<indent>[ \t]*)(?=[%!?]|[,;/]\w|(?:pip3?|conda|mamba|uv)[ \t]+(?:install|uninstall|list|show|pip)\b"
                   rf"|[^\W\d][\w.*\[\]]*\?\??[ \t]*(?:\n|\Z)){REST}")
RUNS_ITS_BODY = ("time", "timeit", "capture", "prun", "memit", "mprun", "lprun")
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def to_python(source: str) -> str:
    """The cell without IPython's syntax, line for line: magics, shell lines and help become comments."""
    source = _dedent(re.sub(r"\r\n?", "\n", source))
    cell_magic = re.match(r"\s*%%(\w*)", source)
    if cell_magic and cell_magic[1] not in RUNS_ITS_BODY:
        return "\n".join(f"# {line}" for line in source.split("\n"))
    pieces, at = [], 0
    while at < len(source):
        if found := TIMED.match(source, at):
            pieces.append(f"{found['indent']}{found['statement']}")
            at = found.end()
        elif found := ASSIGNED.match(source, at):
            value = "[]" if found["mark"] == "!" else "None"  # a shell line gives a list of lines
            pieces.append(f"{found['indent']}{found['target']} = {value}  # {found['mark']}{_commented(found['rest'])}")
            at = found.end()
        elif found := MAGIC.match(source, at):
            pieces.append(f"{found['indent']}pass  # {_commented(found['rest'])}")
            at = found.end()
        else:
            end = _statement_end(source, at)
            pieces.append(source[at:end])
            at = end
    return "".join(pieces)


def _commented(rest: str) -> str:
    return rest.replace("\n", "\n# ")


def _dedent(source: str) -> str:
    """As IPython does: without the first line's indentation."""
    indent = re.match(r"(?:[ \t]*\n)*([ \t]*)", source)[1]
    return re.sub(f"^{indent}", "", source, flags=re.MULTILINE) if indent else source


def _statement_end(source: str, start: int) -> int:
    depth = 0
    for token in TOKEN.finditer(source, start):
        if token["opens"]:
            depth += 1
        elif token["closes"]:
            depth = max(depth - 1, 0)
        elif token["ends"] and not depth:
            # The line break itself goes with the statement, unless that is empty: then magics may follow at once.
            return token.end()
    return len(source)


@lru_cache(16)
def parse(source: str) -> ast.Module | None:
    """None for what is no Python, or too much of it."""
    if len(source) > LONGEST:
        return None
    try:
        return ast.parse(to_python(source))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: "((((((((..."
        return None


@lru_cache(1024)
def functions(source: str) -> frozenset[str]:
    """The functions that a cell defines; where it is no valid Python, those that it seems to."""
    if "def" not in source:
        return frozenset()
    tree = parse(source)
    if tree is None:
        return frozenset(re.findall(r"^(?:async[ \t]+)?def[ \t]+(\w+)[ \t]*\(", to_python(source), re.MULTILINE))
    return frozenset(node.name for node in _statements(tree) if isinstance(node, FUNCTION))


def names(source: str) -> set[str]:
    """All names that a cell's statements bind, at the top level."""
    tree = parse(source)
    return {name for node in _statements(tree) for name in _binds(node)} if tree else set()


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """Everything that runs as the cell runs, also under `if`, `try` and `with`."""
    todo = [tree.body]
    while todo:
        for node in todo.pop(0):
            yield node
            if isinstance(node, (ast.If, ast.Try, ast.With)):
                todo += [node.body, getattr(node, "orelse", [])]


def _binds(node: ast.stmt) -> set[str]:
    if isinstance(node, (*FUNCTION, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {alias.asname or alias.name.split(".")[0] for alias in node.names}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)}


def unwritten(source: str, name: str, stub: str) -> bool:
    """Is the function `name` in this cell still the released stub, or nothing at all?"""
    mine, released = _body(source, name), _body(stub, name)
    if mine is None:
        return not source.strip() or source.split() == stub.split()
    return mine in (released, "", "Pass()") or mine.startswith("Raise(exc=") and "'NotImplementedError'" in mine and "\n" not in mine


def _body(source: str, name: str) -> str | None:
    """The last definition of a function, without docstring and layout: a statement a line."""
    found = [node for node in _statements(parse(source) or ast.Module([], []))
             if isinstance(node, FUNCTION) and node.name == name]
    if not found:
        return None
    body = [node for node in found[-1].body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))]
    try:
        return "\n".join(ast.dump(node) for node in body)
    except RecursionError:
        return "too deep"


def definitions(source: str, released: str, exercises: set[str]) -> str:
    """What a student added to a released cell and other cells may rely on: imports, functions, classes, constants.

    Nothing that takes the place of a released name or of an exercise.
    """
    tree = parse(source)
    if tree is None:
        return ""
    theirs, lines = names(released) | exercises, to_python(source).split("\n")
    kept, last = [], 0
    for node in tree.body:
        bound = _binds(node)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            own = bool(bound - theirs)  # beside names that were imported already
        else:
            constant = isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            own = (constant or isinstance(node, (*FUNCTION, ast.ClassDef))) and not bound & theirs
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
        if own and first > last:
            kept.append("\n".join(lines[first - 1:node.end_lineno]))
            last = node.end_lineno
    return "\n".join(kept)
