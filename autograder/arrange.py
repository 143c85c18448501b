"""Which cell of a submission goes where in the repaired notebook.

Where several cells define one exercise, the last that is not a blank stub counts, as in a notebook that is run from
top to bottom, and it is executed after the others.
"""
from __future__ import annotations

from collections import defaultdict

import nbformat
from nbformat import NotebookNode

from autograder.cellcode import definitions, functions, names, parse, unwritten
from autograder.recognise import Original, originals, recognise

ELSEWHERE = "# {} is written in the cell of {}."


class Arrangement:
    """One repair. Positions in the submission are called p and q, those in the release i and j."""

    def __init__(self, submitted: NotebookNode, released: NotebookNode):
        self.submitted, self.all = submitted.cells, originals(released)
        self.exercises = {o.name: i for i, o in enumerate(self.all) if o.role == "solution"}
        self.owners = recognise(self.submitted, self.all)
        self.defines = [functions(cell.source) & set(self.exercises) for cell in self.submitted]
        self.blank = [{name for name in defined if unwritten(cell.source, name, self.all[self.exercises[name]].cell.source)}
                      for cell, defined in zip(self.submitted, self.defines)]  # those of them that are still stubs
        self.source: dict[int, int] = {}    # released position -> the submitted cell that goes there
        self.text: dict[int, str] = {}      # what stands there instead of that cell's source
        self.winners: dict[str, int] = {}   # exercise -> the submitted cell whose definition counts
        self.homes: dict[int, int] = {}     # such a cell -> its released position
        self.behind: dict[int, list[NotebookNode]] = defaultdict(list)  # released position -> the student's own cells after it
        self.adopted: dict[int, NotebookNode] = {}  # released position of an answer -> the own cell in which it was found
        self._choose_solutions()
        self._choose_others()
        self._place_own_cells()
        self._adopt_answers()

    def copies(self, i: int) -> list[int]:
        return [p for p, owner in enumerate(self.owners) if owner == i and self.submitted[p].source.strip()]

    def definers(self, name: str) -> list[int]:
        """The cells in which an exercise is written, and which grading would execute if they were left alone."""
        return [p for p, defined in enumerate(self.defines) if name in defined - self.blank[p] and self._executed(p)]

    def _executed(self, p: int) -> bool:
        """A solution's cell, whatever its type has become, or code of the student's own."""
        owner, cell = self.owners[p], self.submitted[p]
        return cell.cell_type == "code" and not is_experiment(cell) if owner is None else self.all[owner].role == "solution"

    def changed(self, p: int, i: int) -> bool:
        return _normal(self.submitted[p]) != _normal(self.all[i].cell)

    def _choose_solutions(self) -> None:
        for name, i in self.exercises.items():
            found = self.definers(name)
            found = found or [p for p in self.copies(i) if not self.defines[p] and name in names(self.submitted[p].source)]  # name = ...
            found = found or [p for p, defined in enumerate(self.defines) if name in defined - self.blank[p]]
            if found:
                self.winners[name] = p = found[-1]
                if p not in self.homes or self.owners[p] == i:
                    self.homes[p] = i
        for name, i in self.exercises.items():
            p = self.winners.get(name)
            stubs = [q for q in self.copies(i) if name in self.defines[q]] or self.copies(i)
            earlier = [q for q in self.definers(name) if q not in self.homes]
            if p is None and stubs:
                self.source[i] = stubs[-1]
            elif p is not None and self.homes[p] == i:
                self.source[i] = p
            elif p is not None and earlier and i < self.homes[p]:  # written here, and once more in another's cell
                self.source[i] = earlier[-1]
            elif p is not None:
                self.text[i] = ELSEWHERE.format(name, self.all[self.homes[p]].name)

    def _choose_others(self) -> None:
        """Of a free cell or an answer the last that was changed; of a locked one the first, which only tells the place."""
        for i, original in enumerate(self.all):
            if original.role != "solution" and (found := self.copies(i)):
                changed = [p for p in found if self.changed(p, i)]
                self.source[i] = changed[-1] if changed and not original.locked else found[0]

    def _place_own_cells(self) -> None:
        places, here = {p: i for i, p in self.source.items()}, -1
        before, added = defaultdict(list), defaultdict(list)
        nothing_new = {_normal(o.cell) for o in self.all} | {""} | {
            _normal_text(ELSEWHERE.format(name, other)) for name in self.exercises for other in self.exercises}
        for p, cell in enumerate(self.submitted):
            here, owner, defined = places.get(p, here), self.owners[p], self.defines[p]
            if owner is not None and self.all[owner].locked:
                added[owner] += self._additions(cell, self.all[owner])
            elif p in places or _normal(cell) in nothing_new or self._is_blank_copy(p):
                continue
            else:
                own = _own_cell(cell, self.all[owner] if owner is not None else None)
                later = [j for name in defined & set(self.winners) for j in (self.exercises[name], self.homes[self.winners[name]])]
                if later and self._executed(p):
                    before[min(later)].append(own)  # behind, it would undo the definition that counts
                else:
                    self.behind[here].append(own)
        for i in range(-1, len(self.all)):
            self.behind[i] = added[i] + self.behind[i] + before[i + 1]

    def _is_blank_copy(self, p: int) -> bool:
        return bool(self.blank[p]) and self._executed(p) and names(self.submitted[p].source) == self.blank[p]

    def _additions(self, cell: NotebookNode, original: Original) -> list[NotebookNode]:
        """What a student wrote into a locked cell, as a cell of its own."""
        if original.is_code:
            extra = definitions(cell.source, original.cell.source, set(self.exercises))
            return [_new_cell("code", extra)] if extra else []
        known = {_normal_text(line) for line in original.cell.source.split("\n")} | {""}
        lines = [line for line in cell.source.split("\n") if _normal_text(line) not in known]
        return [_new_cell("markdown", "\n".join(lines))] if lines else []

    def _adopt_answers(self) -> None:
        """A written answer that is blank may stand in a cell of the student's own, next to its place."""
        for i, original in enumerate(self.all):
            if original.role != "written" or i in self.source and self.changed(self.source[i], i):
                continue
            near = [(c, j) for j in (i - 1, i) for c in self.behind[j] if c.cell_type != "code" or parse(c.source) is None]
            if near:
                self.adopted[i], j = min(near, key=lambda found: found[0].cell_type == "code")
                self.behind[j] = [c for c in self.behind[j] if c is not self.adopted[i]]

    def layout(self) -> list[tuple[NotebookNode, Original | None]]:
        """The repaired cells with what they are in the release; ids are valid and used once."""
        found = [(cell, None) for cell in self.behind[-1]]
        for i, original in enumerate(self.all):
            cell = NotebookNode(original.cell)
            theirs = self.adopted.get(i) or (self.submitted[self.source[i]] if i in self.source else cell)
            if not original.locked:
                cell.source = self.text.get(i, theirs.source)
            if theirs.cell_type == cell.cell_type and (original.is_code or not original.locked):
                cell.update(_beside(theirs))
            found += [(cell, original), *((own, None) for own in self.behind[i])]
        taken, number = {o.cell.get("id", "") for o in self.all} | {""}, 0
        for cell, original in found:
            while original is None and cell.id in taken:
                number += 1
                cell.id = f"own-{number}"
            taken.add(cell.get("id", ""))
        return found


def is_experiment(cell: NotebookNode) -> bool:
    tags = cell.metadata.get("tags")
    return isinstance(tags, list) and "experiment" in tags


def _own_cell(cell: NotebookNode, copied: Original | None) -> NotebookNode:
    """A student's cell without what could be taken for a released cell's; of the type of the cell that it is a copy of."""
    kind = cell.cell_type
    if copied and (kind == "code" or functions(cell.source) or parse(cell.source)):  # prose stays prose
        kind = copied.cell.cell_type
    own = _new_cell(kind, cell.source, cell.get("id", ""))
    if is_experiment(cell) or copied and copied.role == "experiment":
        own.metadata["tags"] = ["experiment"]
    if kind == cell.cell_type:
        own.update(_beside(cell))
    return own


def _beside(cell: NotebookNode) -> dict:
    key = "outputs" if cell.cell_type == "code" else "attachments"
    return {key: cell[key]} if key in cell else {}


def _new_cell(kind: str, source: str, identity: str = "") -> NotebookNode:
    cell = {"cell_type": kind, "id": identity, "metadata": {}, "source": source}
    return nbformat.from_dict(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))


def _normal(cell: NotebookNode) -> str:
    return _normal_text(cell.source)


def _normal_text(text: str) -> str:
    return " ".join(text.split())
