"""The house stands: every file imports only from lower floors, the fences hold, and files stay readable."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "glora"
TOP = 9
FLOORS = {  # design.md, "Floors"; halves where one file of its floor builds on another
    "errors": 0, "files": 0, "metadata": 0.5, "preprocess": 0, "registry": 0.5,
    "genotype": 0.5, "workers": 1, "space": 1, "results": 1, "config": 1.5, "cluster": 1.5,
    "wording": 1,
    "support": 2, "searchers": 2, "state": 2.5, "layers": 3, "named": 3.5,
    "adapted": 4, "injection": 4.5, "backbones": 4, "data": 4,
    "supernet": 5, "methods": 6, "pace": 6.5,
    "train": 7, "evaluation": 7, "checkpoint": 7, "device": 7, "latency": 7, "scoring": 7.5,
    "sheet": 7.2, "outcome": 1.5, "folds": 8.1, "controls": 7.7, "calibration": 7.6,
    "tables": 8, "plots": 8, "report": 8, "searchview": 7.9, "progress": 8, "listing": 8, "runfolder": 8, "reporter": 8,
    "resume": 8.2, "winner": 8.2, "searching": 8.3, "training": 8.3, "settle": 7.9, "testing": 8.4, "polishing": 8.4,
    "experiment": 8.5, "demo": 8.6, "options": 8.6, "terminal": 8.8, "cli": 9, "__main__": 9.5, "__init__": TOP,
}  # fmt: skip
NO_TORCH = ("errors", "registry", "files", "preprocess", "genotype", "space", "results", "config", "searchers",
            "outcome", "wording", "workers", "cluster", "tables", "plots")  # fmt: skip
ONE_FILE_EACH = ("timm", "transformers", "matplotlib", "ray", "peft", "onnx", "onnxruntime", "sklearn", "torchao",
                 "bitsandbytes")  # fmt: skip
LATE = {("named", "checkpoint")}  # `Adapted.add` reads a file; bound by name when called

FILES = sorted(SRC.rglob("*.py"))


def name_of(file: Path) -> str:
    """`space`, `layers.linear`, `layers.__init__`."""
    return ".".join(file.relative_to(SRC).with_suffix("").parts)


def floor_of(name: str) -> float:
    first = name.partition(".")[0]
    assert first in FLOORS, f"glora/{first} has no floor: give it one in design.md and here"
    return FLOORS[first]


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def type_checking(tree: ast.Module) -> set[ast.AST]:
    """Everything under `if TYPE_CHECKING:`, which is not run."""
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    return {inner for guard in guards for statement in guard.body for inner in ast.walk(statement)}


def imports(file: Path) -> Iterator[str]:
    """Every module imported, at the top or on use, `from a import b` as `a.b`."""
    tree = tree_of(file)
    unused = type_checking(tree)
    for node in ast.walk(tree):
        if node in unused:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms(file: Path) -> set[str]:
    """The files of this library that the file imports: `space`, `layers.linear`."""
    found = set()
    for imported in imports(file):
        parts = imported.split(".")
        if parts[0] != "glora":
            continue
        while len(parts) > 1 and not (
            (SRC.joinpath(*parts[1:]).with_suffix(".py")).exists() or SRC.joinpath(*parts[1:], "__init__.py").exists()
        ):
            parts.pop()
        folder = SRC.joinpath(*parts[1:]).is_dir()
        found.add(".".join(parts[1:] + (["__init__"] if folder else [])) or "__init__")
    return found - {"__init__"}  # `from glora import x` alone: __version__ and the public names


def strings(file: Path) -> Iterator[str]:
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def functions(file: Path) -> Iterator[tuple[str, int]]:
    """Every function and its lines, the docstring's not counted."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            told = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(node) else 0
            yield node.name, (node.end_lineno or 0) - node.lineno + 1 - told


by_file = pytest.mark.parametrize("file", FILES, ids=name_of)


@by_file
def test_a_file_imports_only_from_lower_floors(file):
    name = name_of(file)
    if name == "__init__":
        return
    own, folder = floor_of(name), name.rpartition(".")[0]
    for other in rooms(file):
        inside = folder and other.startswith(f"{folder}.")
        helper = inside and (name.endswith("__init__") or other.count(".") == name.count("."))
        assert floor_of(other) < own or helper, f"{name} (floor {own}) imports {other} (floor {floor_of(other)})"


@by_file
def test_late_bindings_go_up_only_where_it_is_said(file):
    """Names such as "glora.checkpoint:read_for" are imports too, but for tables of names."""
    name = name_of(file)
    for text in strings(file):
        module, colon, attribute = text.partition(":")
        if colon and module.startswith("glora.") and attribute.isidentifier():
            other = module.removeprefix("glora.")
            upward = floor_of(other) > floor_of(name)
            assert not upward or (name, other) in LATE, f"{name} binds {text} late, which is above it"


def test_the_last_import_test_can_fail():
    assert "adapted" in rooms(SRC / "checkpoint.py")
    assert "layers.__init__" in rooms(SRC / "adapted.py")
    assert floor_of("layers.sites") == 3
    assert max(length for _, length in functions(SRC / "adapted.py")) > 20


@by_file
def test_the_floors_without_torch_do_not_import_it(file):
    if name_of(file).partition(".")[0] in NO_TORCH:
        heavy = {imported.partition(".")[0] for imported in imports(file)} & {"torch", "torchvision", "safetensors"}
        assert not heavy


def test_what_needs_no_torch_does_not_load_it():
    modules = [f"glora.{name}" for name in NO_TORCH if (SRC / f"{name}.py").exists() or (SRC / name).is_dir()]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_importing_the_library_loads_neither_torch_nor_any_extra():
    """A departure from the design's page, so that `glora --help` is quick: every name is loaded on first use."""
    heavy = "{'torch', 'numpy', 'pydantic', 'accelerate', 'timm', 'matplotlib', 'sklearn', 'onnx'}"
    code = f"import sys, glora; dir(glora); sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_public_name_is_there():
    import glora

    assert 15 <= len(glora.__all__) <= 25
    assert all(getattr(glora, name) is not None for name in glora.__all__)
    assert set(glora.__all__) <= set(dir(glora))
    with pytest.raises(AttributeError, match="injekt"):
        _ = glora.injekt


def optional(file: Path) -> set[str]:
    """The packages that the file asks `optional_import` for."""
    calls = [node for node in ast.walk(tree_of(file)) if isinstance(node, ast.Call) and node.args]
    asked = [call.args[0] for call in calls if ast.unparse(call.func).endswith("optional_import")]
    return {str(node.value).partition(".")[0] for node in asked if isinstance(node, ast.Constant)}


@pytest.mark.parametrize("package", ONE_FILE_EACH)
def test_an_optional_package_lives_in_one_file_and_is_imported_on_use(package):
    homes = []
    for file in FILES:
        if package in {imported.partition(".")[0] for imported in imports(file)} | optional(file):
            homes.append(name_of(file))
        for node in tree_of(file).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert package not in {name.partition(".")[0] for name in names}, f"{name_of(file)} imports it at once"
    assert len(homes) <= 1, homes


@by_file
def test_below_floor_8_nothing_prints_reads_the_environment_or_touches_global_random_state(file):
    if floor_of(name_of(file)) >= 8:
        return
    forbidden = {"print", "os.environ", "os.getenv", "torch.manual_seed", "random.seed", "np.random.seed"}
    forbidden |= {"torch.cuda.manual_seed_all", "random.random", "random.choice", "random.shuffle", "random.sample"}
    for node in ast.walk(tree_of(file)):
        used = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""
        assert used not in forbidden, f"{name_of(file)}:{node.lineno} uses {used}"


@by_file
def test_a_file_has_at_most_350_lines_and_a_function_40(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 350
    long = {name: length for name, length in functions(file) if length > 40}
    assert not long


@by_file
def test_a_file_says_what_it_is(file):
    assert ast.get_docstring(tree_of(file)), "its first line says what is inside"
