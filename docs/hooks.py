"""What MkDocs fills in when it builds the site: settings, commands, and the picture of the house, from the code."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from typer.main import get_command

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "glora"
sys.path.insert(0, str(SOURCE.parent))  # the code beside this page, not another version that is installed


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Adds the generated pages."""
    for path, text in (("reference/settings.md", settings()), ("reference/cli.md", commands())):
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts the picture and the table of packages where a page asks for them."""
    if "<!-- house -->" in markdown:
        markdown = markdown.replace("<!-- house -->", house()).replace("<!-- packages -->", packages())
    return markdown


def settings() -> str:
    """The page of all settings: what `glora ls settings` prints, a table for each group."""
    from glora.config import describe

    groups: dict[str, list[str]] = {}
    kind = ""
    for line in describe():
        if line.endswith(":") and "  " not in line:  # `method lora:`, and below it its own settings
            kind = line.removesuffix(":")
            continue
        named, _, told = line.strip().partition("  ")  # `name = default  what it means`
        name, _, default = named.partition(" = ")
        shown = f"`{code(default)}`" if default else "required"
        group = name.rpartition(".")[0]
        heading = kind if line.startswith(" ") else f"`{group}`" if group else "Top level"
        groups.setdefault(heading, []).append(f"| `{name}` | {shown} | {cell(told)} |")
    text = [
        "# Settings",
        "",
        "Every setting is a key of an experiment's YAML file and of `--set key=value`. `glora ls settings` prints the",
        "same list, and `glora check FILE.yaml` reports every mistake in a file at once.",
    ]
    for heading, rows in groups.items():
        text += ["", f"## {heading}", "", "| setting | default | meaning |", "|---|---|---|", *rows]
    return "\n".join(text) + "\n"


def commands() -> str:
    """The page of all commands: what `--help` says of each."""
    from glora.cli.app import app

    text = ["# Command line", ""]
    text += ["Results go to stdout, progress to stderr. The exit code is 0, 2 for a mistake in what was asked, 1 for"]
    text += ["anything else, and 130 after Ctrl-C. `python -m glora` does the same as `glora`."]
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        text += ["", *section(f"glora {name}", command)]
    return "\n".join(text) + "\n"


def section(name: str, command: Any) -> Iterator[str]:
    """One command: usage, help, and a table of arguments and options."""
    context = command.make_context(name, [], resilient_parsing=True)
    usage = " ".join(command.get_usage(context).split()).removeprefix("Usage: ")
    yield from (f"## {name}", "", "```sh", usage, "```")
    for paragraph in (command.help or "").split("\n\n"):
        words = " ".join(paragraph.split())
        example = words.removeprefix("Example: ")
        yield from ("", *(("```sh", example, "```") if words != example else (words,)))
    yield from ("", "| argument or option | meaning |", "|---|---|")
    records = [parameter.get_help_record(context) for parameter in command.params]
    yield from (f"| `{code(names)}` | {cell(told)} |" for names, told in filter(None, records))


def code(text: str) -> str:
    """The text as a code span in a cell of a Markdown table."""
    return text.replace("|", "\\|").strip()


def cell(text: str) -> str:
    """The text as a cell of a Markdown table."""
    return code(text).replace("<", "&lt;")


def floors() -> dict[str, int]:
    """Package -> floor, as the test of the floors has it."""
    for node in ast.parse((ROOT / "tests" / "test_floors.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLOORS":
            found: dict[str, int] = ast.literal_eval(node.value)
            return found
    raise LookupError("tests/test_floors.py has no FLOORS")


def files_of(package: str) -> list[Path]:
    """The Python files of a package, or of a module that stands alone."""
    folder = SOURCE / package
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [SOURCE / f"{package}.py"]


def arrows(on: dict[str, int]) -> dict[str, set[str]]:
    """Package -> the packages that it imports."""
    found: dict[str, set[str]] = {}
    for package in on:
        for file in (file for file in files_of(package) if file.exists()):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                parts = [name.split(".")[1] for name in names if name.startswith("glora.")]
                found.setdefault(package, set()).update(part for part in parts if part in on and part != package)
    return found


def direct(arrow: dict[str, set[str]]) -> Iterator[tuple[str, str]]:
    """The arrows that no longer way replaces: what a picture needs."""

    def reached(start: str) -> set[str]:
        return {start}.union(*(reached(other) for other in arrow.get(start, ())))

    for package, others in arrow.items():
        for other in sorted(others):
            if not any(other in reached(between) for between in others - {other}):
                yield package, other


WIDTH, FLOOR, BOX = 760, 86, (104, 34)  # of the picture, in pixels: its width, the height of a floor, a package's box


def house() -> str:
    """The packages on their floors with the imports between them, as an SVG that needs no script and no network."""
    on = {name: floor for name, floor in floors().items() if not name.startswith("__")}
    top = max(on.values())
    at: dict[str, tuple[float, float]] = {}  # package -> centre of its box
    for floor in range(top + 1):
        row = [name for name in on if on[name] == floor]
        for place, name in enumerate(row):
            at[name] = (70 + (WIDTH - 70) * (place + 0.5) / len(row), FLOOR * (top - floor + 0.5))
    parts = [
        f'<svg class="house" viewBox="0 0 {WIDTH} {FLOOR * (top + 1)}" role="img" aria-label="Packages on floors">'
    ]
    for floor in range(top + 1):
        y = FLOOR * (top - floor)
        parts.append(f'<line class="floor" x1="0" x2="{WIDTH}" y1="{y + FLOOR}" y2="{y + FLOOR}"/>')
        parts.append(f'<text class="number" x="4" y="{y + FLOOR / 2 + 4}">floor {floor}</text>')
    for package, other in direct(arrows(on)):
        (x, y), (u, v) = at[package], at[other]
        if on[package] == on[other]:
            bend = f"Q {(x + u) / 2:.0f} {y + BOX[1] * 1.6:.0f}"
            parts.append(f'<path d="M {x:.0f} {y + BOX[1] / 2:.0f} {bend} {u:.0f} {v + BOX[1] / 2:.0f}"/>')
        else:
            start, end = y + BOX[1] / 2, v - BOX[1] / 2
            parts.append(
                f'<path d="M {x:.0f} {start:.0f} C {x:.0f} {start + 40:.0f} {u:.0f} {end - 40:.0f} {u:.0f} {end:.0f}"/>'
            )
    for name, (x, y) in at.items():
        parts.append(
            f'<rect x="{x - BOX[0] / 2:.0f}" y="{y - BOX[1] / 2:.0f}" width="{BOX[0]}" height="{BOX[1]}" rx="4"/>'
        )
        parts.append(f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle">{name}</text>')
    return "".join([*parts, "</svg>"])


def packages() -> str:
    """A table of the packages, from the first lines of their docstrings."""
    rows = ["| floor | package | what it is |", "|---:|---|---|"]
    for name, floor in sorted(floors().items(), key=lambda item: item[1]):
        file = next((file for file in files_of(name) if file.name in ("__init__.py", f"{name}.py")), None)
        if name.startswith("__") or file is None or not file.exists():
            continue
        told = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").splitlines()
        rows.append(f"| {floor} | `{name}` | {cell(told[0] if told else '')} |")
    return "\n".join(rows)
