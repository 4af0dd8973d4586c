"""No file that a stranger may have made is run: no pickle, no code from a hub, no network when a module is imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "glora"
PICKLES = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
CALLS = ("eval", "exec", "compile", "__import__")  # of built-in names


def dangers(text: str) -> Iterator[str]:
    """What in the code loads a pickle, or runs code that is not its own."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = ((each.name.partition(".")[0], each.asname) for each in node.names)
            yield from (f"import {name}" for name, other in names if name in PICKLES and (name != "pickle" or other))
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle":
            yield from [f"pickle.{node.attr}"] if node.attr != "UnpicklingError" else []  # what torch.load raises
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PICKLES:
            yield f"from {node.module}"
        elif isinstance(node, ast.Constant) and node.value in PICKLES:
            yield f"the name {node.value!r}"
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            yield from (f"{ast.unparse(k)}: True" for k, v in pairs if is_text(k, "trust_remote_code") and is_true(v))
        elif isinstance(node, ast.Call):
            yield from _of_call(node)


def _of_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    given = {each.arg: each.value for each in node.keywords}
    if name in CALLS:
        yield f"{name}()"
    if name in ("torch.load", "load_pickle", "read_pickle", "pandas.read_pickle", "pd.read_pickle"):
        only = given.get("weights_only")
        if only is None or not is_true(only):
            yield f"{name} without weights_only=True"
    if name == "yaml.load" and not any(ast.unparse(each).endswith(("SafeLoader", "_UniqueKeys")) for each in node.args):
        yield "yaml.load without a safe loader"
    if name.startswith("yaml.") and ("unsafe" in name or "full" in name):
        yield name
    for word in ("allow_pickle", "trust_remote_code", "shell"):
        if word in given and is_true(given[word]):
            yield f"{word}=True"


def is_true(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def is_text(node: ast.AST | None, text: str) -> bool:
    return isinstance(node, ast.Constant) and node.value == text


@pytest.mark.parametrize("file", sorted(SRC.rglob("*.py")), ids=lambda file: str(file.relative_to(SRC)))
def test_no_pickle_is_loaded_and_no_remote_code_run(file: Path) -> None:
    assert list(dangers(file.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle; pickle.load(file)",
        "import pickle as other",
        "from pickle import load",
        "import joblib.numpy_pickle",
        "importlib.import_module('pickle')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "options = {'trust_remote_code': True}",
        "yaml.load(text, yaml.Loader)",
        "yaml.unsafe_load(text)",
        "pd.read_pickle(path)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_search_for_dangers_finds_them(text: str) -> None:
    assert list(dangers(text))


OFFLINE = """
import importlib, pkgutil, socket, sys
class Refused(Exception): pass
def refuse(*_, **__):
    raise Refused("the network was used")
for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse)
for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, refuse)
import glora
from glora.errors import MissingExtraError
for module in pkgutil.walk_packages(glora.__path__, "glora."):
    if module.name != "glora.__main__":
        try:
            importlib.import_module(module.name)
        except Refused:
            sys.exit(f"{module.name} uses the network")
        except ImportError as error:  # of an extra that is not installed
            print(module.name, error)
try:
    socket.create_connection(("127.0.0.1", 9))
except Refused:
    print("refused as it should be")
"""


def test_nothing_is_fetched_when_a_module_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", OFFLINE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "refused as it should be" in done.stdout
