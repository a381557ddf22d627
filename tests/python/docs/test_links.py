"""Links in the repository's Markdown lead somewhere, and every page is on the site."""

import os
import re
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from markdown_it import MarkdownIt

from helpers import ROOT

LISTED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
    cwd=ROOT,
    capture_output=True,
    text=True,
)
PAGES = [ROOT / line for line in LISTED.stdout.splitlines() if (ROOT / line).exists()]
PARSER = MarkdownIt("commonmark").enable("table")


def name(page):
    return str(page.relative_to(ROOT))


def inlines(page):
    for token in PARSER.parse(page.read_text()):
        yield from token.children or ()


def links(page):
    for token in inlines(page):
        target = token.attrGet("href") or token.attrGet("src")
        if token.type in ("link_open", "image") and not urlsplit(target).scheme:
            yield unquote(target)


def anchors(page):
    """The anchors of a page's headings, as GitHub and the site make them."""
    found = []
    tokens = PARSER.parse(page.read_text())
    for heading, inline in zip(tokens, tokens[1:], strict=False):
        if heading.type == "heading_open":
            text = "".join(child.content for child in inline.children)
            slug = re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")
            found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return found


def problem(page, target):
    path, _, anchor = target.partition("#")
    # Links of the file system count as what they are called: docs/changelog.md is one.
    file = Path(os.path.normpath(page.parent / path)) if path else page
    if not file.exists():
        return "no such file"
    if (ROOT / "docs") in page.parents and (ROOT / "docs") not in file.parents:
        return "outside of docs/, which the site does not have"
    if anchor and file.suffix == ".md" and anchor not in anchors(file):
        return f"no such heading; there are: {', '.join(anchors(file))}"
    return None


def test_there_are_pages():
    assert {"README.md", "CHANGELOG.md", "docs/semantics.md"} <= {name(page) for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    found = {target: problem(page, target) for target in links(page)}
    assert {target: what for target, what in found.items() if what} == {}


@pytest.mark.parametrize("folder", ["guide", "reference"])
def test_every_page_of_a_folder_is_in_its_table(folder):
    """In docs/index.md for the guide, in docs/reference/index.md for the reference."""
    table = next(
        page
        for page in (ROOT / "docs" / folder / "index.md", ROOT / "docs" / "index.md")
        if page.exists()
    )
    linked = {(table.parent / target.partition("#")[0]).resolve() for target in links(table)}
    there = set((ROOT / "docs" / folder).glob("*.md")) - {table}
    assert {name(page) for page in there - linked} == set(), f"list it in {name(table)}"


class _Config(yaml.SafeLoader):
    """Reads mkdocs.yml, whose tags name Python objects, without making any."""


_Config.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def test_every_page_of_docs_is_in_the_navigation():
    config = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader=_Config)

    def files(entry):
        if isinstance(entry, str):
            return [entry]
        return [
            file
            for part in (entry if isinstance(entry, list) else entry.values())
            for file in files(part)
        ]

    listed = files(config["nav"])
    assert len(listed) == len(set(listed))
    there = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert there - set(listed) == set(), "add it to `nav` in mkdocs.yml, as CONTRIBUTING.md says"
    assert set(listed) - there == set(), "there is no such page"
