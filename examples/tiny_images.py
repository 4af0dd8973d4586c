"""What the examples of images run on: a tiny random vision transformer of timm, and pictures of three brightnesses."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn


def tiny_vit(classes: int = 3) -> nn.Module:
    """The same random model every time, of two blocks, for images of 16 pixels."""
    torch.manual_seed(0)
    size = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=classes, **size)


def pictures(n: int = 120) -> tuple[Tensor, Tensor]:
    """Noisy images `(n, 3, 16, 16)`, dark, grey or light, and which they are, `(n,)`."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    return torch.randn(n, 3, 16, 16, generator=generator) + (labels - 1.0).view(-1, 1, 1, 1), labels


def search_and_merge(adapted, out, *, x: Tensor, y: Tensor) -> nn.Module:  # type: ignore[no-untyped-def]
    """The winner on held-out pictures, saved as an adapter and merged into the plain model."""
    import glora

    model = adapted.model.eval()

    @torch.no_grad()
    def score(genotype: glora.Genotype) -> float:
        with adapted.hold(genotype):
            return -nn.functional.cross_entropy(model(x), y).item()

    budget = adapted.count(adapted.space.largest) // 2
    found = glora.search(score, adapted.space, budget=budget, settings={"population": 8, "generations": 2})
    print(f"the best of {len(found.trials)} configurations has {found.best.parameters:,} parameters")
    adapted.activate(found.best.genotype)
    glora.save_adapter(adapted, out / "winner.safetensors")
    plain = adapted.merge()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(plain(x), y).item()
    print(f"held-out loss {-found.best.score.value:.4f}, merged {loss:.4f}")
    return plain
