"""Makes the notebook of the guide, examples/guide.ipynb, out of the guide's own pages; a test compares and runs it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "guide.ipynb"
PARTS = (  # pages, from one heading to another
    ("get-started.md", "## The same from Python", "## What happened"),
    ("loop.md", "# Your own training loop", ""),
)
FENCE = re.compile(r"^```python\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
BEGINNING = """# glora in a notebook

Generalized LoRA ([arXiv 2306.07967](https://arxiv.org/abs/2306.07967)): adapt every linear layer, train one supernet
over all configurations, search the best within a budget, merge it at no cost. All cells together run in a minute on a
processor. The text is the guide's."""
INSTALL = "%pip install --quiet glora"


def notebook() -> dict[str, Any]:
    """The notebook as plain data, in the format 4.5 of Jupyter."""
    cells = [_cell("markdown", BEGINNING), _cell("code", INSTALL)]
    for name, first, last in PARTS:
        text = (ROOT / "docs" / "guide" / name).read_text(encoding="utf-8")
        text = text[text.index(first) : text.index(last) if last else len(text)]
        place = 0
        for match in FENCE.finditer(text):
            cells += [_cell("markdown", _said(text[place : match.start()])), _cell("code", match[1].strip())]
            place = match.end()
        cells.append(_cell("markdown", _said(text[place:])))
    cells = [{"id": f"cell-{number}", **cell} for number, cell in enumerate(cells) if cell["source"]]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}, "colab": {"provenance": []}}
    return {"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}


def _said(text: str) -> str:
    """The text with links to other pages of the guide as plain words."""
    return re.sub(r"\[([^\]]+)\]\((?!http)[^)]+\)", r"\1", text).strip()


def _cell(kind: str, text: str) -> dict[str, Any]:
    found: dict[str, Any] = {"cell_type": kind, "metadata": {}, "source": text.splitlines(keepends=True)}
    return {**found, "execution_count": None, "outputs": []} if kind == "code" else found


def written() -> str:
    """The notebook's file."""
    return json.dumps(notebook(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(written(), encoding="utf-8")
