"""A contract for import-linter: files of a package do not import each other in a circle.

Imports inside functions count, and so do those for type checkers alone. Nothing in an inner file
may import a public name from the package itself either, whose `__init__` imports it: such a circle
shows as one through the package.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import grimp
from importlinter import Contract, ContractCheck, fields, output

# The extension module has no source that import-linter could see: to it, an import of that is one
# of the package.
_EXTENSION_ALONE = re.compile(r"\s*from \w+ import _core\s*(#.*)?")

Graph = dict[str, set[str]]


class AcyclicFilesContract(Contract):
    """Finds circles of files.

    Options:
        package: The package whose files it looks at.

    """

    type_name = "acyclic_files"

    package = fields.StringField()

    def check(self, graph: grimp.ImportGraph, verbose: bool) -> ContractCheck:
        """Look for circles."""
        imports: Graph = {}
        for module in graph.modules:
            if f"{module}.".startswith(f"{self.package}."):
                found = graph.find_modules_directly_imported_by(module)
                imports[module] = {name for name in found if _counts(graph, module, name)}
        arrows = [
            (importer, imported, sorted(_lines(graph, importer, imported)))
            for circle in _circles(imports)
            for importer, imported in itertools.pairwise(circle)
        ]
        return ContractCheck(kept=not arrows, metadata={"arrows": arrows})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print each circle, arrow by arrow."""
        output.print_error("These files import each other in a circle; one of the arrows must go:")
        output.new_line()
        for importer, imported, lines in check.metadata["arrows"]:
            where = ", ".join(f"l.{line}" for line in lines)
            output.print_error(f"- {importer} -> {imported} ({where})", bold=False)
        output.new_line()


def _counts(graph: grimp.ImportGraph, importer: str, imported: str) -> bool:
    details = graph.get_import_details(importer=importer, imported=imported)
    return not details or not all(
        _EXTENSION_ALONE.fullmatch(detail["line_contents"]) for detail in details
    )


def _lines(graph: grimp.ImportGraph, importer: str, imported: str) -> Iterator[int]:
    for detail in graph.get_import_details(importer=importer, imported=imported):
        yield detail["line_number"]


def _circles(imports: Graph) -> Iterator[list[str]]:
    """Yield a shortest circle through each file that is in one and was in none before."""
    seen: set[str] = set()
    for start in sorted(imports):
        if start in seen:
            continue
        circle = _circle(imports, start)
        if circle and seen.isdisjoint(circle):
            seen.update(circle)
            yield circle


def _circle(imports: Graph, start: str) -> list[str]:
    paths, reached = [[start]], {start}
    for path in paths:  # grows meanwhile
        for name in sorted(imports.get(path[-1], ())):
            if name == start:
                return [*path, start]
            if name not in reached:
                reached.add(name)
                paths.append([*path, name])
    return []
