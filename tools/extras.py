"""Builds the wheel, and installs it into clean environments, with each extra alone; then uses what the extra is for.

    python tools/extras.py            # the small ones, as CI does
    python tools/extras.py --all      # every extra but dev
    python tools/extras.py vision ""  # these; "" is the wheel without extras

With --shared one environment serves them all: what an extra has added is taken off after it. With --core-from-here its
core, which is large, is that of the environment that runs this script; the extras alone are fetched.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from environments import built_wheel, new_environment, project, put_core, run

SMALL = ("", "plot", "pandas", "onnx", "bench")
CORE = """
import random, torch, glora
from torch import nn
model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 3))
x = torch.randn(4, 8)
adapted = glora.inject(model, glora.SearchSpace(ranks=(4, 2)), head="2")
score = lambda genotype: random.Random(str(genotype)).random()
found = glora.search(score, adapted.space, settings={"population": 4, "generations": 1})
adapted.activate(found.best.genotype)
y = model(x)
assert torch.allclose(adapted.merge()(x), y, atol=1e-5)
"""
VIT = """
import timm, torch, glora
size = dict(img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=3)
adapted = glora.inject(timm.create_model("vit_tiny_patch16_224", **size), glora.SearchSpace())
adapted.model(torch.randn(2, 3, 16, 16))
"""
LLAMA = """
import glora, transformers
config = transformers.LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                                  num_attention_heads=2, num_key_value_heads=1)
adapted = glora.inject(transformers.LlamaForCausalLM(config), glora.SearchSpace(), head=None)
"""
CHECKS = {  # extra -> a program that uses what it installs
    "": CORE,
    "vision": VIT + "from glora.tasks.data.torchvision_sets import TorchvisionSet",
    "data": VIT + "import datasets; from glora.tasks.data.hugging_face import HuggingFace",
    "text": LLAMA + "import datasets; from glora.tasks.data.text import Text",
    "trainer": LLAMA + "from glora.integrations import TrainerCallback; TrainerCallback(adapted)",
    "lightning": "from glora.integrations import LightningCallback",
    "quantize": LLAMA + "import torchao",
    "bitsandbytes": LLAMA + "import bitsandbytes",
    "lm-eval": "import lm_eval, glora.runs.lm_eval",
    "plot": "import matplotlib, jinja2; from glora.report.plots import figures; from glora.report.page import page",
    "log": "import glora.report.loggers.tensorboard_log, glora.report.loggers.trackio_log",
    "wandb": "import glora.report.loggers.wandb_log",
    "pandas": CORE + "assert len(found.to_pandas()) == len(found.trials)",
    "cluster": "import ray, glora.searchers",
    "demo": VIT + "import onnx, sklearn; from glora.tasks.data.packaged import Digits",
    "demo-language": LLAMA + "import gguf",
    "arithmetic": "import reasoning_gym; from glora.tasks.data.arithmetic import Arithmetic",
    "onnx": "import onnx, onnxscript, onnxruntime; import glora.exports.onnx_model",
    "bench": "import peft, glora",
    "docs": "import mkdocs, mkdocstrings, material",
}


def check(python: Path, wheel: Path, extra: str, folder: Path) -> None:
    """The wheel with the extra is installed and does what it is for; from a folder where no checkout is."""
    run(python, "-m", "pip", "install", "--quiet", f"{wheel}[{extra}]" if extra else wheel)
    run(python, "-m", "pip", "check")
    run(python, "-W", "error::SyntaxWarning", "-c", CHECKS[extra], cwd=folder)
    run(python, "-m", "glora", "ls", "methods", cwd=folder)


def installed(python: Path) -> set[str]:
    """Every package of an environment with its version; the wheel itself is not among them."""
    lines = run(python, "-m", "pip", "list", "--format=freeze").split()
    return {line for line in lines if not line.startswith("glora")}


def take_off(python: Path, before: set[str]) -> bool:
    """Whether the environment could be put back: what was added is gone, and nothing else had changed."""
    now = installed(python)
    if added := sorted(line.partition("==")[0] for line in now - before):
        run(python, "-m", "pip", "uninstall", "--yes", "--quiet", *added)
    return installed(python) == before


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help=", ".join(filter(None, CHECKS)))
    parser.add_argument("--all", action="store_true", help="every extra but dev")
    parser.add_argument("--shared", action="store_true", help="one environment for all")
    parser.add_argument("--core-from-here", action="store_true", help="take what every extra needs from here")
    options = parser.parse_args()
    wanted = options.extras or list(CHECKS if options.all else SMALL)
    if unknown := set(wanted) - CHECKS.keys():
        parser.error(f"no such extra: {', '.join(sorted(unknown))}")
    assert set(project()["optional-dependencies"]) - {"dev"} == CHECKS.keys() - {""}, "an extra has no check"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        wheel, python, before = built_wheel(folder), None, set[str]()
        for extra in wanted:
            start = time.perf_counter()
            if python is None:
                python = new_environment(folder / "environment")
                if options.core_from_here:
                    put_core(python)
                if options.shared:
                    check(python, wheel, "", folder)
                    before = installed(python)
            check(python, wheel, extra, folder)
            print(f"{f'glora[{extra}]' if extra else 'glora':24} {time.perf_counter() - start:6.0f} s", flush=True)
            if not options.shared or not take_off(python, before):
                python = None


if __name__ == "__main__":
    sys.exit(main())
