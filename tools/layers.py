"""Checks that the files of each Rust crate use one another in one direction only.

`tools/layers.toml` declares the order of each crate's modules, from top to bottom. A file may use
files of its own layer and of those below. This check refuses a file that uses one above it, a file
that uses a peer (`a | b`), files that use each other in a circle, and modules that no layer names.

It reads `use` declarations and paths that begin with `crate`, `super`, `self`, or the name of a
module that the file has imported. A name that a module re-exports counts as used from the file that
has it. Unit tests (`#[cfg(test)] mod tests`) may use anything.

    python tools/layers.py [ROOT]
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

Module = tuple[str, ...]

TOKEN = re.compile(
    r"""
    (?P<skip> //[^\n]* | /\*.*?\*/
      | b?r(?P<hashes>\#*)".*?"(?P=hashes) | b?"(?:\\.|[^"\\])*" | b?'(?:\\.[^']*|[^'\\])'
    )
  | (?P<word> \$? (?:r\#)? [A-Za-z_]\w* )
  | (?P<sign> :: | [{}(),;*!] )
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass
class Token:
    """One word or sign."""

    text: str
    line: int


@dataclass
class Use:
    """A path that a file names: `crate::a::b`, resolved as far as the text tells."""

    path: tuple[str, ...]
    line: int


@dataclass
class File:
    """What one file names."""

    path: Path
    module: Module
    uses: list[Use] = field(default_factory=list)
    # Names that it gives to paths: by `use`, and those that others see by `pub use`.
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    exports: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Arrow:
    """One file uses another."""

    user: Module
    used: Module
    line: int


def tokens(text: str) -> list[Token]:
    """Return the words and signs of Rust source, without comments, strings and characters."""
    found = []
    line, at = 1, 0
    for match in TOKEN.finditer(text):
        line += text.count("\n", at, match.start())
        at = match.start()
        if match.lastgroup != "skip" and match["skip"] is None:
            word = match["word"]
            found.append(Token(word.removeprefix("r#") if word else match["sign"], line))
    return found


def parse(path: Path, module: Module) -> File:
    """Read what a file names and exports."""
    file = File(path, module)
    stream = tokens(path.read_text(encoding="utf-8"))
    inline: list[tuple[str, int]] = []  # modules that are written in this file, and their depth
    depth = at = 0
    while at < len(stream):
        token = stream[at]
        before = stream[at - 1].text if at else ""
        here = (*module, *(name for name, _ in inline))
        if token.text == "{":
            depth += 1
        elif token.text == "}":
            depth -= 1
            if inline and inline[-1][1] == depth:
                inline.pop()
        elif token.text == "mod" and at + 2 < len(stream) and stream[at + 2].text == "{":
            inline.append((stream[at + 1].text, depth))
            depth += 1
            at += 2
        elif token.text == "use":
            public = before == "pub" or (before == ")" and is_public(stream, at))
            end = at
            while end < len(stream) and stream[end].text != ";":
                end += 1
            for parts, name in tree(stream[at + 1 : end]) if "tests" not in here else ():
                full = absolute(parts, here)
                if public:
                    file.exports[name] = full
                else:
                    file.uses.append(Use(full, token.line))
                if not inline:
                    file.names[name] = full
            at = end
        elif before not in ("::", "in") and at + 1 < len(stream) and stream[at + 1].text == "::":
            parts = [token.text]
            while at + 2 < len(stream) and stream[at + 1].text == "::":
                if not stream[at + 2].text.isidentifier():
                    break
                parts.append(stream[at + 2].text)
                at += 2
            if "tests" not in here:
                file.uses.append(Use(absolute(tuple(parts), here), token.line))
        at += 1
    return file


def is_public(stream: list[Token], at: int) -> bool:
    """Return whether the `use` here is `pub(...) use`."""
    while at and stream[at].text != "(":
        at -= 1
    return at > 0 and stream[at - 1].text == "pub"


def tree(stream: list[Token]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Return the paths of a `use` tree, each with the name that it gets."""

    def group(at: int, prefix: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str, int]]:
        parts = prefix
        while at < len(stream):
            text = stream[at].text
            if text == "{":
                at += 1
                while at < len(stream) and stream[at].text != "}":
                    for one in group(at, parts):
                        yield one
                        at = one[2]
                    if at < len(stream) and stream[at].text == ",":
                        at += 1
                yield (), "", at + 1
                return
            if text in (",", "}"):
                break
            if text == "as":
                yield parts, stream[at + 1].text, at + 2
                return
            if text == "self" and parts:
                pass
            elif text != "::":
                parts = (*parts, text)
            at += 1
        yield parts, parts[-1] if parts else "", at

    for parts, name, _ in group(0, ()):
        if parts:
            yield parts, name


def absolute(parts: tuple[str, ...], here: Module) -> tuple[str, ...]:
    """Return the path from the crate's root; as it stands if it begins with a name."""
    head, *rest = parts
    match head:
        case "crate" | "$crate":
            return ("crate", *rest)
        case "self":
            return ("crate", *here, *rest)
        case "super":
            up = list(here)
            while parts and parts[0] == "super":
                up = up[:-1]
                parts = parts[1:]
            return ("crate", *up, *parts)
    return parts


class Crate:
    """The files of one crate, by module."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.files: dict[Module, File] = {}
        for path in sorted(source.rglob("*.rs")):
            parts = list(path.relative_to(source).with_suffix("").parts)
            if parts[-1] in ("mod", "lib", "main"):
                parts.pop()
            module = tuple(parts)
            self.files[module] = parse(path, module)

    def resolve(self, path: tuple[str, ...], file: File, tries: int = 16) -> Module | None:
        """Return the module of the file that has `path`; None if it is not of this crate."""
        if not path or not tries:
            return None
        if path[0] != "crate":
            known = file.names.get(path[0])
            if known is not None and known != path:
                return self.resolve((*known, *path[1:]), file, tries - 1)
            if (*file.module, path[0]) not in self.files:
                return None
            path = ("crate", *file.module, *path)
        rest = list(path[1:])
        module: Module = ()
        while rest and (*module, rest[0]) in self.files:
            module = (*module, rest.pop(0))
        if rest and module in self.files:
            exported = self.files[module].exports.get(rest[0])
            if exported is not None:
                there = self.files[module]
                return self.resolve((*exported, *rest[1:]), there, tries - 1) or module
        return module

    def arrows(self) -> Iterator[Arrow]:
        """Yield each use of one file by another, once."""
        seen = set()
        for file in self.files.values():
            for use in file.uses:
                used = self.resolve(use.path, file)
                if used is None or used == file.module or self.names_module(use.path, file):
                    continue
                if used in self.files and (file.module, used) not in seen:
                    seen.add((file.module, used))
                    yield Arrow(file.module, used, use.line)

    def names_module(self, path: tuple[str, ...], file: File) -> bool:
        """Return whether the path is only a module, whose contents are used by its name."""
        if path[0] != "crate":
            known = file.names.get(path[0])
            if known is None or known == path or known[0] != "crate":
                return False
            path = (*known, *path[1:])
        return path[1:] in self.files and path[-1] in file.names

    def where(self, arrow: Arrow) -> str:
        """Describe an arrow by its files."""
        user, used = self.files[arrow.user].path, self.files[arrow.used].path
        return f"{user}:{arrow.line} -> {used}"


def layers_of(order: list[str]) -> dict[str, tuple[int, int]]:
    """Return the layer of each module of an order, and its place among peers; -1 for none."""
    found = {}
    for layer, line in enumerate(order):
        peers = line.split("|")
        for place, names in enumerate(peers):
            for name in names.split():
                found[name] = (layer, place if len(peers) > 1 else -1)
    return found


def upward(crate: Crate, orders: dict[str, list[str]], arrows: list[Arrow]) -> Iterator[str]:
    """Yield what breaks the declared orders."""
    for name, order in orders.items():
        base = tuple(name.split("::")) if name != "crate" else ()
        layers = layers_of(order)

        def child(module: Module, base: Module = base) -> str | None:
            if module[: len(base)] != base:
                return None
            return module[len(base)] if len(module) > len(base) else "."

        children = {child(module) for module in crate.files} - {None}
        for missing in sorted(children - layers.keys() - {"."}):
            yield f"`{missing}` is in no layer of `{name}`: name it in tools/layers.toml"
        for gone in sorted(layers.keys() - children):
            yield f"there is no `{gone}` in `{name}`: take it out of tools/layers.toml"
        for arrow in arrows:
            user, used = child(arrow.user), child(arrow.used)
            if user == used or user not in layers or used not in layers:
                continue
            above, below = layers[used], layers[user]
            if above[0] < below[0]:
                yield f"{crate.where(arrow)}: `{used}` is above `{user}`"
            elif above[0] == below[0] and above[1] != below[1]:
                yield f"{crate.where(arrow)}: `{used}` and `{user}` are peers"


def circles(crate: Crate, arrows: list[Arrow]) -> Iterator[str]:
    """Yield each group of files that use one another in a circle."""
    out: dict[Module, list[Module]] = {module: [] for module in crate.files}
    for arrow in arrows:
        out[arrow.user].append(arrow.used)
    for group in components(out):
        if len(group) > 1:
            inside = [a for a in arrows if a.user in group and a.used in group]
            lines = "".join(f"\n    {crate.where(arrow)}" for arrow in inside)
            yield f"{len(group)} files use one another in a circle:{lines}"


def components(out: dict[Module, list[Module]]) -> Iterator[set[Module]]:
    """Return the strongly connected components, by Tarjan's algorithm."""
    index: dict[Module, int] = {}
    low: dict[Module, int] = {}
    stack: list[Module] = []
    found: list[set[Module]] = []

    def visit(node: Module) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in out[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = set()
            while node not in group:
                group.add(stack.pop())
            found.append(group)

    for node in out:
        if node not in index:
            visit(node)
    return iter(found)


def check(root: Path) -> list[str]:
    """Return what is wrong in the crates that `tools/layers.toml` declares."""
    declared = tomllib.loads((root / "tools" / "layers.toml").read_text(encoding="utf-8"))
    wrong = []
    for name, settings in declared.items():
        crate = Crate(root / name / "src")
        arrows = list(crate.arrows())
        wrong += upward(crate, settings["layers"], arrows)
        wrong += circles(crate, arrows)
    return [line.replace(f"{root}/", "") for line in wrong]


def main() -> int:
    """Check the repository, or the folder that is given."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    wrong = check(root)
    for line in wrong:
        print(f"layers: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
