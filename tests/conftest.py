"""What every test shares: a tiny vision transformer of our own, one thread, and rewriting of the suites' asserts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from suites.toy import image_folder

pytest.register_assert_rewrite("suites.layer_suite")
torch.set_num_threads(1)  # tiny tensors: more threads only get into each other's way


@pytest.fixture(autouse=True)
def no_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the files of figures empty, except in tests marked `figures`: drawing takes most of the time of a run."""

    def touch(figure: object, path: str | Path, **options: object) -> None:
        Path(path).touch()

    if request.node.get_closest_marker("figures") is None:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", touch)


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(torch.nn.functional.gelu(self.fc1(self.norm2(x))))


class TinyViT(nn.Module):
    """Two blocks of width 12 on four patches; `fc2` has no bias."""

    def __init__(self, classes: int = 3, width: int = 12) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patch(x).flatten(2).transpose(1, 2))).mean(1))


@pytest.fixture(scope="session")
def vit() -> Callable[..., TinyViT]:
    """Makes the tiny transformer: equal seeds give equal weights."""

    def make(seed: int = 0, classes: int = 3) -> TinyViT:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = TinyViT()
            for module in model.modules():
                if isinstance(module, nn.LayerNorm):  # as trained; as made its outputs sum to zero and mute vector B
                    nn.init.normal_(module.weight, 1.0, 0.3)
                    nn.init.normal_(module.bias, 0.0, 0.3)
            model.head = nn.Linear(model.head.in_features, classes)  # last: the base is the same at any width
            return model.eval()

    return make


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of labelled images."""
    return image_folder(tmp_path_factory.mktemp("data") / "photos")
