"""The house stands: every file imports only from lower floors, the fences hold, and functions stay readable."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "glora"
FLOORS = {  # packages and files on whole floors: each imports only from lower ones
    "version": 0, "errors": 0, "registry": 0, "plain": 0, "tensor_file": 0, "files": 0, "settings": 0, "scikit": 0,
    "genes": 1, "genotype": 1, "space": 1,
    "tasks": 2,
    "searchers": 3, "report": 3, "config": 3, "backbones": 3,
    "adapt": 4,
    "methods": 5, "integrations": 5, "exports": 5,
    "training": 6,
    "runs": 7,
    "cli": 8,
    "__main__": 9, "__init__": 9,
}  # fmt: skip
NO_TORCH = ("version", "errors", "registry", "plain", "tensor_file", "files", "settings", "genes", "genotype", "space",
            "searchers", "report", "config")  # fmt: skip
ONE_FILE_EACH = ("timm", "transformers", "matplotlib", "ray", "peft", "onnx", "onnxruntime", "sklearn", "torchao",
                 "bitsandbytes", "pandas", "datasets", "gguf", "lm_eval",
                 "tensorboard", "trackio", "wandb", "lightning")  # fmt: skip
ALSO = {
    "timm": {"tasks.augment"},  # its transforms of training images, two floors below its models
    "transformers": {"integrations.transformers_callback"},  # the callbacks of its trainer
}
LATE = {("config", "methods")}  # the table of methods, whose settings an experiment has; bound by name when asked

FILES = sorted(SRC.rglob("*.py"))


def name_of(file: Path) -> str:
    """`space`, `layers.linear`, `layers.__init__`."""
    return ".".join(file.relative_to(SRC).with_suffix("").parts)


def floor_of(name: str) -> int:
    first = name.partition(".")[0]
    assert first in FLOORS, f"glora/{first} has no floor: give it one in design.md and here"
    return FLOORS[first]


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def type_checking(tree: ast.Module) -> set[ast.AST]:
    """Everything under `if TYPE_CHECKING:`, which is not run."""
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    return {inner for guard in guards for statement in guard.body for inner in ast.walk(statement)}


def imports(file: Path, *, typed: bool = False) -> Iterator[str]:
    """Every module imported, at the top, on use, or for its types alone; `from a import b` is `a.b`."""
    tree = tree_of(file)
    unused = set() if typed else type_checking(tree)
    for node in ast.walk(tree):
        if node in unused:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms(file: Path, *, typed: bool = False) -> set[str]:
    """The files of this library that the file imports: `space`, `adapt.layers.linear`."""
    found = set()
    for imported in imports(file, typed=typed):
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


def package_of(name: str) -> str:
    """The room on the floors: `adapt`, `space`."""
    return name.partition(".")[0]


@by_file
def test_a_file_imports_only_from_lower_floors_or_its_own_package(file):
    name = name_of(file)
    if name == "__init__":
        return
    for other in rooms(file):
        inside = package_of(other) == package_of(name) and "." in name
        lower = floor_of(other) < floor_of(name)
        assert lower or inside or is_base(other, name), (
            f"{name} (floor {floor_of(name)}) imports {other} (floor {floor_of(other)})"
        )


def is_base(other: str, name: str) -> bool:
    """Floors 0 and 1 are single files, which stand on each other in the order that FLOORS has them in."""
    order = list(FLOORS)
    single = floor_of(name) == floor_of(other) <= 1
    return single and order.index(package_of(other)) < order.index(package_of(name))


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """The files of some circle of imports; empty when there is none."""
    left = dict(arrows)
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    return sorted(left)


def test_no_file_is_in_a_circle():
    arrows = {name_of(file): {o for o in rooms(file, typed=True) if o != name_of(file)} for file in FILES}
    assert not circle(arrows)


def test_circles_are_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


@by_file
def test_late_bindings_go_up_only_where_it_is_said(file):
    """Names such as "glora.adapt.adapter_file:load_adapter" are imports too; those of a table are its rows."""
    name = name_of(file)
    for text in strings(file):
        module, colon, attribute = text.partition(":")
        if colon and module.startswith("glora.") and attribute.isidentifier():
            other = module.removeprefix("glora.")
            upward = floor_of(other) > floor_of(name)
            assert not upward or (name, other) in LATE, f"{name} binds {text} late, which is above it"


def test_the_import_tests_can_fail():
    assert "adapt.adapted" in rooms(SRC / "adapt" / "adapter_file.py")
    assert "adapt.layers.__init__" in rooms(SRC / "adapt" / "sites.py")
    assert floor_of("adapt.sites") == 4
    assert max(length for _, length in functions(SRC / "adapt" / "adapted.py")) > 20


@by_file
def test_the_floors_without_torch_do_not_import_it(file):
    if name_of(file).partition(".")[0] in NO_TORCH:
        heavy = {imported.partition(".")[0] for imported in imports(file)} & {"torch", "torchvision"}
        assert not heavy


def test_what_needs_no_torch_does_not_load_it():
    modules = [f"glora.{name}" for name in NO_TORCH]
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
    assert len(set(homes) - ALSO.get(package, set())) <= 1, homes


@by_file
def test_below_the_runs_nothing_prints_reads_the_environment_or_touches_global_random_state(file):
    if floor_of(name_of(file)) >= FLOORS["runs"]:
        return
    forbidden = {"print", "os.environ", "os.getenv", "torch.manual_seed", "random.seed", "np.random.seed"}
    forbidden |= {"torch.cuda.manual_seed_all", "random.random", "random.choice", "random.shuffle", "random.sample"}
    for node in ast.walk(tree_of(file)):
        used = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""
        assert used not in forbidden, f"{name_of(file)}:{node.lineno} uses {used}"


@by_file
def test_a_function_has_at_most_40_lines(file):
    long = {name: length for name, length in functions(file) if length > 40}
    assert not long


@by_file
def test_a_file_says_what_it_is(file):
    assert ast.get_docstring(tree_of(file)), "its first line says what is inside"
