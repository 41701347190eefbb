# SPDX-License-Identifier: Apache-2.0
"""Citations are valid: no file names a page that is not in the project, links and sections exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("src", "tests", "fuzz", "bench", "examples", "docs", "scripts", "demo")
SUFFIXES = {".py", ".pyx", ".pxd", ".pyi", ".md", ".c", ".h", ".toml", ".sh", ".service", ""}
FOREIGN = re.compile(
    r"""\brules\ \d            # "rules 3": of a page that is not here
      | (?<!docs/)\b(?:rules|design|house|language|protocol|conventions|peers|toolstack)\.md\b
      | \bthe\ house\b
      | (?<![\w/.-])shared/[a-z]+[/.]
    """,
    re.VERBOSE,
)
CITED = re.compile(r"\bdocs/([\w-]+\.md)(?:, ([A-Z][\w/' -]*?)(?=[.,;:)\"`]|\s*$| and docs/))?", re.MULTILINE)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def files() -> Iterator[Path]:
    """The project's own text files."""
    yield from (path for path in sorted(ROOT.iterdir()) if path.is_file() and path.suffix in SUFFIXES)
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*")):
            if path.is_file() and path.suffix in SUFFIXES and "__pycache__" not in path.parts:
                yield path


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(path: Path) -> str:
    """A file's text, comments that go over lines joined: a citation may be broken."""
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        return ""
    return re.sub(r"\n[ \t]*(?:#|\*|//)?[ \t]*(?=\S)", " ", text)


def sections(page: Path) -> set[str]:
    return set(re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE))


def matches(cited: str, heading: str) -> bool:
    """A citation may shorten a heading; the text behind it may go on after its name."""
    return heading.startswith(cited) or cited.startswith(heading)


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in sections(page))
    return {heading.replace(" ", "-") for heading in plain}


TEXTS = {name(path): text_of(path) for path in files() if name(path) != "tests/test_docs.py"}


def test_no_file_names_a_page_that_is_not_in_the_project() -> None:
    found = {
        file: sorted({match.group() for match in FOREIGN.finditer(text)})
        for file, text in TEXTS.items()
        if FOREIGN.search(text)
    }
    assert found == {}


def test_cited_pages_and_sections_exist() -> None:
    missing = []
    for file, text in TEXTS.items():
        for page, section in CITED.findall(text):
            path = ROOT / "docs" / page
            if not path.exists():
                missing.append(f"{file}: docs/{page}")
            elif section and not any(matches(section, known) for known in sections(path)):
                missing.append(f"{file}: docs/{page}, {section}")
    assert missing == []


@pytest.mark.parametrize("file", [file for file in TEXTS if file.endswith(".md")])
def test_links_lead_somewhere(file: str) -> None:
    page, missing = ROOT / file, []
    for link in LINK.findall(page.read_text()):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (page.parent / unquote(target)).resolve() if target else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            missing.append(link)
    assert missing == []
