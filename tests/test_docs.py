"""The documentation: every page is in the site, links lead somewhere, and commands are those that the command line has."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from wsss import __version__
from wsss.commands import command

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def pages_of(nav):
    for entry in nav:
        for below in entry.values() if isinstance(entry, dict) else [entry]:
            yield from pages_of(below) if isinstance(below, list) else [below]


def commands_of(page):
    """Words of each `wsss ...` in a page's code blocks, without remarks and shell variables' signs."""
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            for one in line.split("&&"):
                words = shlex.split(one, comments=True) if one.strip().startswith("wsss ") else []
                if words and "..." not in words:
                    yield words[1:]


def test_every_page_is_in_the_navigation_once():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(pages_of(nav)) == sorted(page.relative_to(ROOT / "docs").as_posix() for page in PAGES)


def headings(page):
    """The anchors that the site gives to a page's headings."""
    found = re.findall(r"^#+ (.+)$", re.sub(BLOCK, "", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in found}


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("*.md")], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page):
    missing = []
    for link in re.findall(r"\]\(([^)\s]+)[^)]*\)", re.sub(BLOCK, "", page.read_text(encoding="utf-8"))):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if "://" not in link and not (
            target.exists()
            and (not anchor or anchor in headings(target))
            # the site has the pages below docs alone
            and (page not in PAGES or target.resolve().is_relative_to(ROOT / "docs"))
        ):
            missing.append(link)
    assert missing == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_commands_on_a_page_are_accepted(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands_of(page):
        while "--config" in words and not Path(file := words[words.index("--config") + 1]).exists():
            words = [word for word in words if word not in ("--config", file)]  # a reader's own file
        name, found = command(words)
        found.parser(name).parse(words[len(name.split()) :])


def test_the_citation_is_of_this_version_and_names_every_method_s_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    cited = " ".join(reference["notes"] for reference in citation["references"])
    pages = [page.read_text(encoding="utf-8").splitlines()[0] for page in (ROOT / "docs" / "methods").glob("*.md")]
    names = [name for title in pages for name in re.findall(r"\b[A-Z-]{3,}\w*(?:-\w)?", title)]
    assert "CLIMS" in names
    assert [name for name in names if name not in cited] == []


def test_the_site_loads_nothing_from_elsewhere():
    """Fonts are the reader's; a diagram language would load its script from a server."""
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert settings["theme"]["font"] is False
    assert not {"extra_javascript", "extra_css"} & {*settings}
    assert not [page for page in PAGES if "```mermaid" in page.read_text(encoding="utf-8")]


def test_the_page_on_the_architecture_names_every_module():
    table = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    package = ROOT / "wsss"
    modules = {path.name for path in package.glob("*.py")} | {
        f"{path.parent.name}/" for path in package.glob("*/__init__.py")
    }
    assert {name for name in modules if f"`{name}`" not in table} == set()
