"""What the scripts of this folder share: the project's requirements, its wheel, and clean virtual environments."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


def project() -> dict[str, Any]:
    """The table `project` of pyproject.toml."""
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def name_of(requirement: str) -> str:
    """The package of a requirement, as pip spells it."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def new_environment(folder: Path) -> Path:
    """The Python of a fresh virtual environment in the folder."""
    venv.EnvBuilder(with_pip=True, clear=True).create(folder)
    return folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"


def core() -> dict[str, metadata.Distribution]:
    """What the wheel without extras needs, directly or not, as it is installed beside this script."""
    found: dict[str, metadata.Distribution] = {}
    left = list(project()["dependencies"])
    while left:
        requirement = left.pop()
        name = name_of(requirement)
        if name in found or "extra ==" in requirement:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # of another system or version of Python
            continue
        left += found[name].requires or []
    return found


def put_core(python: Path) -> None:
    """An environment has the core's packages of this one, by hard links: in a second, where pip takes a minute."""
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    for name, each in core().items():
        for file in each.files or sys.exit(f"{name} does not tell its files"):
            if ".." in file.parts or "__pycache__" in file.parts:
                continue
            target = site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(each.locate_file(file), target)
            except FileExistsError:
                continue
            except OSError:  # another file system
                shutil.copy2(str(each.locate_file(file)), target)


def run(*command: str | Path, **options: Any) -> str:
    """What a command prints; where it fails, the script ends with that."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def built_wheel(folder: Path) -> Path:
    """The wheel of this checkout, built by pip, which isolates the build."""
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    (wheel,) = folder.glob("glora-*.whl")
    return wheel
