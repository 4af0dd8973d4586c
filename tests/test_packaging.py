"""What is installed: a wheel with the library, its type marker and its command, and nothing else."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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
