"""Every file and folder that the pages about velo's own code name is there."""

import re

import pytest

from helpers import ROOT

# Where the paths of a page may begin.
SOURCES = [ROOT / "velo-py/src", ROOT / "velo-shm/src", ROOT / "velo-supervisor/src"]
PAGES = {
    "docs/glossary.md": [ROOT],
    "docs/architecture.md": [ROOT, *SOURCES, ROOT / "python/velo"],
    "docs/decisions.md": [ROOT, ROOT / "velo-py/src", ROOT / "docs"],
    "docs/dependencies.md": [ROOT],
    "docs/performance.md": [ROOT, ROOT / "docs"],
    "docs/reliability.md": [ROOT, ROOT / "tests/python/cli"],
    "benches/README.md": [ROOT],
    "CONTRIBUTING.md": [ROOT],
}
PATH = re.compile(
    r"`((?:[\w.-]+/)*(?:[\w-]+\.(?:rs|py|pyi|toml|md|json|yml)|[\w-]+/))(?:::[\w:]+)?`"
)


def named(page):
    return set(PATH.findall((ROOT / page).read_text()))


@pytest.mark.parametrize("page", PAGES)
def test_the_paths_of_a_page_exist(page):
    found = named(page)
    there = {path for path in found if any((root / path).exists() for root in PAGES[page])}
    # What a build makes, and examples of names, are not in the repository.
    assert found - there <= {"site/", "name.py", "test_x.py"}, "name the file where it is now"


def test_the_pattern_finds_paths():
    text = "`velo-shm/src/ring/` and `csv/`, `a/b.rs`, `test_x.py::test_y`, `a.b`, `/dev/shm/`, `x`"
    assert PATH.findall(text) == ["velo-shm/src/ring/", "csv/", "a/b.rs", "test_x.py"]


def test_the_glossary_says_where_each_concept_lives():
    rows = re.findall(
        r"^\| (.+) \| (.+) \| (.+) \|$", (ROOT / "docs/glossary.md").read_text(), re.M
    )
    rows = [row for row in rows if row[0] not in ("name", "---")]
    assert len(rows) > 60
    assert [name for name, _, where in rows if not PATH.search(where)] == []
    names = [name for name, _, _ in rows]
    assert len(names) == len(set(names)), "one concept, one name"
