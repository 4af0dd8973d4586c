"""The documentation builds, its links lead somewhere, and the Python code of the guide runs as pasted."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import glora

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
GENERATED = {DOCS / "reference" / "settings.md", DOCS / "reference" / "cli.md"}  # made by docs/hooks.py in the build
FENCE = re.compile(r"^(?:<!-- not run: (.+?) -->\n)?```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def relative(page: Path) -> str:
    return str(page.relative_to(DOCS))


@pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed: pip install -e .[docs]"
)
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for page in [*PAGES, *GENERATED]:
        name = page.relative_to(DOCS).with_suffix("")
        folder = name.parent if name.name == "index" else name
        assert (tmp_path / "site" / folder / "index.html").is_file(), page
    settings = (tmp_path / "site" / "reference" / "settings" / "index.html").read_text(encoding="utf-8")
    assert "train.epochs" in settings
    commands = (tmp_path / "site" / "reference" / "cli" / "index.html").read_text(encoding="utf-8")
    assert "glora fit" in commands
    assert "--budget" in commands
    house = (tmp_path / "site" / "contributing" / "index.html").read_text(encoding="utf-8")
    assert '<svg class="house"' in house
    assert all(f">{name}</text>" in house for name in ("errors", "space", "adapt", "runs", "cli"))


def code_of(page: Path) -> str:
    """The Python blocks of a page that are run, one after the other, each on its own line of the page."""
    text = page.read_text(encoding="utf-8")
    lines: list[str] = []
    for match in FENCE.finditer(text):
        if not match[1]:
            lines += [""] * (text.count("\n", 0, match.start(2)) - len(lines)) + match[2].splitlines()
    return "\n".join(lines)


GUIDE = [page for page in PAGES if page.parent.name == "guide" and code_of(page)]


@pytest.mark.parametrize("page", GUIDE, ids=relative)
def test_the_python_code_of_a_guide_page_runs_as_pasted(page: Path, tmp_path: Path) -> None:
    script = tmp_path / f"{page.stem}_page.py"
    script.write_text(code_of(page), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", script.name], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{relative(page)}, by its own line numbers:\n{done.stderr}"


def test_every_python_block_of_the_guide_is_run_or_says_why_not() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if page.parent.name == "guide":
            assert len(FENCE.findall(text)) == text.count("```python"), (
                f"{relative(page)}: a fence is not at the margin"
            )
    assert GUIDE


def anchors(page: Path) -> set[str]:
    """The ids of the headings of a page, as Markdown viewers make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", re.sub(r"[`*_]", "", heading)).strip().lower() for heading in headings]
    return {re.sub(r"[\s]+", "-", heading) for heading in plain}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.is_file() or found in GENERATED, f"{target} does not exist"
        if anchor and found.suffix == ".md" and found.is_file():
            assert anchor in anchors(found), f"{target}: no such heading"


def test_no_file_names_a_page_that_is_not_there() -> None:
    """Docstrings and comments point at pages by their path from the root."""
    here = [path for folder in ("src", "tests", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
    for path in here:
        for named in re.findall(r"\bdocs/[\w./-]+\.(?:md|py)\b", path.read_text(encoding="utf-8")):
            assert (ROOT / named).is_file() or ROOT / named in GENERATED, f"{path.relative_to(ROOT)} names {named}"


def test_the_reference_has_every_public_name() -> None:
    text = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^::: glora\.(\w+)$", text, re.MULTILINE)) == set(glora.__all__)
