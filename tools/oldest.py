"""Runs the tests with the oldest versions that pyproject.toml allows of everything that it names.

    python tools/oldest.py                         # tests of the core, in a virtual environment in .venv-oldest
    python tools/oldest.py --extras vision,text -- tests/test_transformers.py
    python tools/oldest.py --list                  # the versions alone

What a package itself needs is left to pip, and may deprecate what that package does: here warnings are no errors. Use a
Python that has wheels of those versions: 3.10 to 3.12.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from environments import ROOT, name_of, new_environment, project, run

TESTS = ("test_support", "test_layers", "test_space", "test_searchers", "test_train", "test_fit", "test_state")
TOOLS = ("pytest", "hypothesis", "pytest-xdist", "pymoo")
PLACE = ROOT / ".venv-oldest"


def oldest(extras: list[str]) -> list[str]:
    """`name==version` of every package that the core and these extras name, at its lower bound."""
    table, found = project(), dict[str, str]()
    left = [*table["dependencies"], *(each for extra in extras for each in table["optional-dependencies"][extra])]
    left += [each for each in table["optional-dependencies"]["dev"] if name_of(each) in TOOLS]
    while left:
        requirement = left.pop()
        name, bound = name_of(requirement), re.search(r"[>=]=\s*([\w.]+)", requirement)
        if inner := re.match(r"glora\[(.+)\]", requirement):
            left += [each for extra in inner[1].split(",") for each in table["optional-dependencies"][extra]]
        elif bound:
            found[name] = f"{name}=={bound[1]}"
    return sorted(found.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--extras", default="vision,plot", help="besides the core")
    parser.add_argument("--list", action="store_true", help="print the versions and stop")
    parser.add_argument("tests", nargs="*", help="what to give to pytest")
    options = parser.parse_args()
    extras = [each for each in options.extras.split(",") if each]
    versions = oldest(extras)
    print("\n".join(versions), flush=True)
    if options.list:
        return 0
    python = new_environment(PLACE)
    pins = PLACE / "oldest.txt"
    pins.write_text("\n".join(versions) + "\n", encoding="utf-8")
    target = f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT)
    run(python, "-m", "pip", "install", "--quiet", "--constraint", pins, "--editable", target, *TOOLS)
    tests = options.tests or [str(Path("tests") / f"{name}.py") for name in TESTS]
    return subprocess.run(
        [str(python), "-m", "pytest", "-q", "-o", "filterwarnings=default", *tests], cwd=ROOT, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
