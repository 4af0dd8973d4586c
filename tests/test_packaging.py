"""What is installed: a wheel with the library, its type marker and its command, and nothing else."""

from __future__ import annotations

import configparser
import importlib
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import glora

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without isolation: no network."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_library_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    ours = {name for name in names if name.startswith("glora/")}
    source = {f"glora/{file.relative_to(ROOT / 'src' / 'glora').as_posix()}" for file in (ROOT / "src").rglob("*.py")}
    page = {f"glora/report/page/page.{end}" for end in ("html", "css", "js")}
    assert ours == {*source, *page, "glora/py.typed"}
    assert all(name.startswith(("glora/", "glora-")) for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_its_metadata_and_entry_point(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (info,) = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        metadata = archive.read(f"{info}/METADATA").decode()
        points = configparser.ConfigParser()
        points.read_string(archive.read(f"{info}/entry_points.txt").decode())
    assert points["console_scripts"]["glora"] == "glora.cli.app:main"
    assert re.search(r"^License-Expression: Apache-2\.0$", metadata, re.MULTILINE)
    assert re.search(rf"^Version: {re.escape(glora.__version__)}$", metadata, re.MULTILINE)
    extras = set(re.findall(r"^Provides-Extra: (\w+)$", metadata, re.MULTILINE))
    assert {"vision", "text", "plot", "cluster", "demo", "bench", "dev"} <= extras


def test_the_wheel_runs_from_elsewhere(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    code = "import glora, glora.cli.app; print(glora.__file__); glora.cli.app.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(str(tmp_path / "installed"))
    assert "fit" in done.stdout


# -- what is asked of others


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a script of `tools/` by its name."""
    pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    yield importlib.import_module
    for name in ("environments", "extras", "oldest", "notebook"):
        sys.modules.pop(name, None)


def test_every_requirement_has_an_oldest_version_and_ends_below_a_major_one(tool: Any) -> None:
    project = tool("environments").project()
    extras = project["optional-dependencies"].values()
    every = [*project["dependencies"], *(each for extra in extras for each in extra)]
    for requirement in every:
        name, _, rest = requirement.partition(";")[0].strip().partition(">=")
        if name.startswith("glora[") or "==" in name:
            continue
        oldest, _, top = rest.partition(",<")
        assert oldest and top, f"{requirement} has no bounds"
        assert "." not in top or name in ("ruff", "mypy"), (
            f"{requirement}: a major version"
        )  # whose rules change oftener


def test_the_scripts_know_every_extra(tool: Any) -> None:
    extras = set(tool("environments").project()["optional-dependencies"])
    checks, small = tool("extras").CHECKS, tool("extras").SMALL
    assert checks.keys() == extras - {"dev"} | {""} and set(small) <= checks.keys()
    for program in checks.values():
        compile(program, "check", "exec")
    (built,) = re.findall(r"^ARG EXTRAS=(.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert set(built.split(",")) <= extras


def test_the_oldest_versions_are_the_lower_bounds(tool: Any) -> None:
    found = tool("oldest").oldest(["vision", "text"])
    assert "torch==2.6" in found and "timm==1.0.15" in found and "transformers==4.56" in found
    assert not any(line.startswith("glora") for line in found)


# -- what people read


def test_the_citation_is_of_this_version() -> None:
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert found["version"] == glora.__version__ and found["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= found.keys()


def test_contributing_names_what_there_is() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for name in ("CONTRIBUTING.md", "SECURITY.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert set(re.findall(r"^make ([\w-]+)", text, re.MULTILINE)) <= set(targets)
        assert all((ROOT / file).exists() for file in re.findall(r"\]\((?!http)([^)#]+)\)", text))


def test_the_notebook_is_the_guide(tool: Any) -> None:
    script = tool("notebook")
    assert script.NOTEBOOK.read_text(encoding="utf-8") == script.written(), "run: python tools/notebook.py"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells one after the other, as a kernel runs them, but for the one that installs."""
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "examples" / "guide.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {"__name__": "__main__"}
    ran = 0
    with torch.random.fork_rng():
        for cell in cells:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code" and not source.startswith("%pip"):
                exec(compile(source, cell["id"], "exec"), names)
                ran += 1
    assert ran >= 8 and (tmp_path / "run" / "result.json").is_file()
