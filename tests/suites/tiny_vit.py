"""timm's ViT, tiny: for methods that need the blocks of a transformer that they know."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn


def tiny_vit(seed: int = 0, classes: int = 3) -> nn.Module:
    """timm's ViT with two blocks of width 12 on four patches, its norms as if they were trained."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2}
        model = VisionTransformer(num_classes=3, **sizes)
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                nn.init.normal_(parameter, float(name.endswith("weight")), 0.3)
        model.head = nn.Linear(12, classes)  # last: the base is the same at any width
        return model.eval()
