"""Adapters that others wrote: PEFT's folders and the authors' checkpoints, read as the genotypes that they are."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import glora
from glora.adapt.foreign.authors import read_genotypes
from glora.errors import AdapterFileError, ConfigError, StateError
from glora.genotype import LayerConfig
from suites.tiny_vit import tiny_vit

peft = pytest.importorskip("peft", reason="needs the extra bench")
transformers = pytest.importorskip("transformers", reason="needs the extra text")

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "FutureWarning")]  # PEFT's
NEAR = {"rtol": 1e-5, "atol": 1e-5}


def llama(**changes: Any) -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=40, num_key_value_heads=1, initializer_range=0.3, **sizes, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).eval()


def gpt2() -> nn.Module:
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "initializer_range": 0.3}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=40, **sizes)).eval()


class Convolutions(nn.Module):
    """A convolution, an embedding with a padding row, and a linear layer without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 16, padding_idx=0)
        self.conv = nn.Conv2d(1, 6, 3)
        self.out = nn.Linear(6 * 4, 5, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.conv(self.words(ids).view(len(ids), 1, 4, -1)[..., :4]).flatten(1))


def convolutions() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Convolutions().eval()


IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(1, 40, (3, 9), generator=torch.Generator().manual_seed(0))
WORDS = torch.randint(0, 10, (3, 1), generator=torch.Generator().manual_seed(1))
BASES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "vit": (tiny_vit, IMAGES),
    "llama": (llama, TOKENS),
    "gpt2": (gpt2, TOKENS),
    "convolutions": (convolutions, WORDS),
}
LORA: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("vit", {"r": 4, "lora_alpha": 8, "target_modules": ["qkv", "fc1"]}),
    "rslora": ("llama", {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]}),
    "patterns": (
        "llama",
        {
            "r": 4,
            "lora_alpha": 3,
            "target_modules": "all-linear",
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, "down_proj": 6},
            "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 9, "up_proj": 1},
        },
    ),
    "fan-in-fan-out": ("gpt2", {"r": 2, "lora_alpha": 4, "fan_in_fan_out": True, "target_modules": ["c_attn", "c_fc"]}),
    "convolution": ("convolutions", {"r": 3, "lora_alpha": 4, "target_modules": ["conv", "words", "out"]}),
    "head": ("vit", {"r": 2, "lora_alpha": 2, "target_modules": ["attn.proj"], "modules_to_save": ["head"]}),
    "embeddings": ("llama", {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "bias": ("vit", {"r": 2, "lora_bias": True, "lora_alpha": 5, "target_modules": ["qkv", "fc2"]}),
    "lora-only": ("vit", {"r": 2, "bias": "lora_only", "target_modules": ["qkv", "fc2"]}),
}


def written(model: nn.Module, config: Any, folder: Path) -> nn.Module:
    """A folder of PEFT's with random numbers, and the model that plays it."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        adapted = peft.get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                with torch.no_grad():
                    parameter.copy_(parameter + 0.3 * torch.randn(parameter.shape))
                    if "embedding_A" in name:
                        parameter[:, 0] = 0  # as training leaves the padding
    adapted.save_pretrained(folder)
    return adapted.eval()


def output(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        found = model(x)
    return found if isinstance(found, Tensor) else found.logits


def lora(folder: Path, case: str) -> tuple[Callable[[], nn.Module], Tensor, Tensor]:
    """The base of a case, its inputs, and what PEFT gives."""
    base, settings = LORA[case]
    build, x = BASES[base]
    return build, x, output(written(build(), peft.LoraConfig(**settings), folder), x)


@pytest.mark.parametrize("case", LORA)
def test_a_lora_of_peft_plays_merges_and_is_given_back(tmp_path, case):
    build, x, wanted = lora(tmp_path, case)
    plain = output(build(), x)
    adapted = glora.load_adapter(build(), tmp_path)
    torch.testing.assert_close(output(adapted.model, x), wanted, **NEAR)
    assert not torch.allclose(plain, wanted, atol=1e-3)
    torch.testing.assert_close(output(adapted.merge(), x), wanted, **NEAR)
    assert torch.equal(output(adapted.detach(), x), plain)


def test_it_is_the_genotype_that_it_is(tmp_path):
    lora(tmp_path, "patterns")
    adapted = glora.load_adapter(llama(), tmp_path)
    assert adapted.active["model.layers.1.self_attn.q_proj"] == LayerConfig(B="lora:2")
    assert adapted.active["model.layers.0.mlp.down_proj"] == LayerConfig(B="lora:6")
    assert adapted.scales["model.layers.0.mlp.up_proj"] == {"B.lora": 1 / 4}


def test_it_trains_on_and_is_saved_as_ours(tmp_path):
    build, x, wanted = lora(tmp_path / "peft", "head")
    adapted = glora.load_adapter(build(), tmp_path / "peft")
    glora.save_adapter(adapted, tmp_path / "ours.safetensors")
    again = glora.load_adapter(build(), tmp_path / "ours.safetensors")
    torch.testing.assert_close(output(again.model, x), wanted, **NEAR)
    optimizer = torch.optim.SGD(adapted.parameters(), lr=0.1)
    adapted.model(x).square().mean().backward()
    optimizer.step()
    assert not torch.allclose(output(adapted.model, x), wanted)


def test_it_plays_beside_other_adapters(tmp_path):
    build, x, wanted = lora(tmp_path, "plain")
    adapted = glora.inject(build(), glora.SearchSpace(ranks=(2,)), head=None)
    adapted.add("theirs", tmp_path)
    adapted.switch("theirs")
    torch.testing.assert_close(output(adapted.model, x), wanted, **NEAR)


@pytest.mark.parametrize("case", ["plain", "patterns", "head"])
def test_a_supernet_starts_from_it(tmp_path, case):
    build, x, wanted = lora(tmp_path, case)
    head = ["head"] if case == "head" else None
    adapted = glora.inject(build(), glora.SearchSpace(ranks=(8, 4)), head=head)
    genotype = adapted.start_from(tmp_path)
    torch.testing.assert_close(output(adapted.model, x), wanted, **NEAR)
    adapted.space.encode(genotype)
    adapted.activate(adapted.space.largest)
    torch.testing.assert_close(output(adapted.model, x), wanted, **NEAR)  # the rest is fresh, which does nothing
    adapted.activate(adapted.sample(random.Random(0)))


def test_a_supernet_without_room_for_it_is_left_as_it_is(tmp_path):
    build, x, _ = lora(tmp_path, "plain")
    adapted = glora.inject(build(), glora.SearchSpace(ranks=(2,)), head=None)
    plain = output(adapted.model, x)
    with pytest.raises(StateError, match=r"no place for B lora:4.*Offered there: lora:2"):
        adapted.start_from(tmp_path)
    assert torch.equal(output(adapted.model, x), plain)
    narrow = glora.inject(build(), glora.SearchSpace(), targets=["fc1"], head=None)
    with pytest.raises(StateError, match=r"not adapted at blocks\.0\.attn\.qkv"):
        narrow.start_from(tmp_path)


@pytest.mark.parametrize(
    "kinds", [("lora", "lora", "vector"), ("vector", "vector", "constant"), ("constant", "none", "vector")]
)
@pytest.mark.parametrize("base", ["vit", "llama"])
def test_a_glora_of_peft_plays_and_merges(tmp_path, base, kinds):
    build, x = BASES[base]
    a_b, c, d_e = kinds
    targets = ["qkv", "fc1"] if base == "vit" else ["q_proj", "down_proj"]
    whole = ["head"] if base == "vit" else None
    config = peft.GloraConfig(
        r=3, target_modules=targets, config_A_B=a_b, config_C=c, config_D_E=d_e, modules_to_save=whole
    )
    wanted = output(written(build(), config, tmp_path), x)
    adapted = glora.load_adapter(build(), tmp_path)
    torch.testing.assert_close(output(adapted.model, x), wanted, **NEAR)
    one = next(iter(adapted.active.values()))
    names = {"lora": "lora:3", "constant": "scalar"}
    assert str(one.A) == str(one.B) == names.get(a_b, a_b)
    torch.testing.assert_close(output(adapted.merge(), x), wanted, **NEAR)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias='all'"),
        ({"peft_type": "IA3"}, "IA3 has no counterpart"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"layer_replication": [[0, 1]]}, r"layer_replication=\[\[0, 1\]\]"),
        ({"something_new": 7}, "something_new=7"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"r": 5}, "has rank 4, and 5"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(tmp_path, changes, words):
    build, x, _ = lora(tmp_path, "plain")
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    model = build()
    plain = output(model, x)
    with pytest.raises(AdapterFileError, match=words):
        glora.load_adapter(model, tmp_path)
    assert torch.equal(output(model, x), plain)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: {name.replace("base_model.model.", "model."): v for name, v in t.items()}, "does not begin with"),
        (lambda t: t | {"base_model.model.more.weight": torch.ones(2)}, "more.weight is of no adapter"),
        (lambda t: {n: v for n, v in t.items() if "blocks.0.attn.qkv.lora_B" not in n}, "one factor alone"),
        (lambda t: {n: v[..., :-1] if "fc1.lora_A" in n else v for n, v in t.items()}, "has shape"),
        (lambda t: {n.replace("blocks.0", "blocks.7"): v for n, v in t.items()}, r"has no blocks\.7"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, change, words):
    build, _, _ = lora(tmp_path, "plain")
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: value.contiguous() for name, value in change(load_file(file)).items()}, file)
    with pytest.raises(AdapterFileError, match=words):
        glora.load_adapter(build(), tmp_path)


def test_a_tied_weight_adapted_in_one_layer_is_refused(tmp_path):
    config = peft.LoraConfig(r=2, target_modules=["lm_head"])
    written(llama(tie_word_embeddings=True), config, tmp_path)
    with pytest.raises(AdapterFileError, match=r"shares its weight with model\.embed_tokens"):
        glora.load_adapter(llama(tie_word_embeddings=True), tmp_path)


CONFIGS: dict[str, dict[str, Any]] = {  # settings of the config -> what no folder has
    "a list as kind": {"peft_type": ["LORA"]},
    "alpha a text": {"lora_alpha": "/etc/passwd"},
    "alpha a list": {"lora_alpha": []},
    "alpha of 39 digits": {"lora_alpha": 10**39},
    "alpha infinite": {"lora_alpha": float("inf")},
    "patterns a truth value": {"alpha_pattern": True},
    "patterns a text": {"alpha_pattern": "x"},
    "a pattern that is none": {"alpha_pattern": {"[": 1}},
    "a pattern that takes for ever": {"alpha_pattern": {"(([a-z_.0-9])+)+!": 1}},
    "patterns that take for ever together": {"alpha_pattern": {".*.*.*.*.*.*.*!": 1}},
    "modules a number": {"modules_to_save": 5},
    "nested": {"modules_to_save": [[[]]]},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_damaged_config_is_one_error_and_the_model_as_before(tmp_path: Path, name: str) -> None:
    build, _, _ = lora(tmp_path, "plain")
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | CONFIGS[name]))
    model, start = build(), time.monotonic()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(AdapterFileError, match=re.escape(str(tmp_path))):
        glora.load_adapter(model, tmp_path)
    assert time.monotonic() - start < 5
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    build, _, _ = lora(tmp_path, "plain")
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, file)
    with pytest.raises(AdapterFileError, match="numbers that are not finite"):
        glora.load_adapter(build(), tmp_path)


def test_a_folder_of_something_else_is_told(tmp_path):
    with pytest.raises(AdapterFileError, match=r"has no adapter_config\.json"):
        glora.load_adapter(tiny_vit(), tmp_path)


# The authors' checkpoints, made by the naming of their code.

AUTHORS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
RANK = 3


def authors_checkpoint(model: nn.Module) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(2)
    found: dict[str, Tensor] = {}
    for name, layer in model.named_modules():
        if not name.endswith(AUTHORS):
            continue
        o, i = layer.weight.shape  # type: ignore[union-attr,misc]
        shapes: dict[str, tuple[int, ...]] = {"Ad": (o, RANK), "Au": (RANK, i), "Bd": (o, RANK), "Bu": (RANK, i)}
        shapes |= {"Cd": (i, RANK), "Cu": (RANK, 1), "D": (o,), "E": (o,)}
        found |= {f"{name}.{part}": 0.3 * torch.randn(shape, generator=draw) for part, shape in shapes.items()}
    head = {"head.weight": torch.randn(3, 12, generator=draw), "head.bias": torch.randn(3, generator=draw)}
    return found | head


def path(choice: Any, down: Tensor, up: Tensor | None) -> Tensor:
    """`prepare_path` of the authors' code: a tensor of the formula that broadcasts."""
    if choice.kind == "lora":
        assert up is not None
        return down[:, : choice.rank] @ up[: choice.rank]
    if choice.kind == "vector":
        return down if up is None else down[:, :1]
    if choice.kind == "scalar":
        return down[:1] if up is None else down[:1, :1]
    return torch.zeros(1) if up is None else torch.zeros(1, 1)


def by_hand(model: nn.Module, saved: dict[str, Tensor], genotype: Any) -> Tensor:
    """What the authors' formula gives: weights and biases written into a plain model."""
    with torch.no_grad():
        for name, config in genotype.items():
            layer: Any = model.get_submodule(name)
            a, b, c = (path(getattr(config, t), saved[f"{name}.{t}d"], saved[f"{name}.{t}u"]) for t in "ABC")
            d, e = (path(getattr(config, t), saved[f"{name}.{t}"], None) for t in "DE")
            shift = layer.weight @ c.expand(layer.in_features, 1)
            layer.bias.copy_(layer.bias + layer.bias * d + e + shift.squeeze(-1))
            layer.weight.copy_(layer.weight + layer.weight * a + b)
        model.head.weight.copy_(saved["head.weight"])  # type: ignore[union-attr,operator]
        model.head.bias.copy_(saved["head.bias"])  # type: ignore[union-attr,operator]
    return output(model, IMAGES)


def test_a_checkpoint_of_the_authors_is_their_supernet(tmp_path):
    saved = authors_checkpoint(tiny_vit())
    torch.save(saved, tmp_path / "vit.pt")
    adapted = glora.load_adapter(tiny_vit(), tmp_path / "vit.pt")
    assert adapted.space.rules == glora.SearchSpace.paper(ranks=(RANK,))
    for seed in range(4):
        genotype = adapted.space.largest if seed == 0 else adapted.sample(random.Random(seed))
        adapted.activate(genotype)
        torch.testing.assert_close(output(adapted.model, IMAGES), by_hand(tiny_vit(), saved, genotype), **NEAR)


def test_the_configurations_of_their_search_are_read(tmp_path):
    torch.save(authors_checkpoint(tiny_vit()), tmp_path / "vit.pt")
    adapted = glora.load_adapter(tiny_vit(), tmp_path / "vit.pt")
    first = {"A": f"LoRA_{RANK}", "B": "vector", "C": "none", "D": "constant", "E": "vector"}
    second = {"A": "none", "B": f"LoRA_{RANK}", "C": "vector", "D": "none", "E": "none"}
    best = tuple(first if place % 2 else second for place in range(len(adapted.sites)))
    torch.save({"keep_top_k": {10: [best], 50: [best, best[::-1]]}, "candidates": [], "vis_dict": {}},
               tmp_path / "checkpoint-3.pth.tar")  # fmt: skip
    found = read_genotypes(adapted.space, tmp_path / "checkpoint-3.pth.tar")
    assert len(found) == 2
    assert list(found[0].values())[1] == LayerConfig(A=f"lora:{RANK}", B="vector", D="scalar", E="vector")
    adapted.activate(found[1])
    with pytest.raises(AdapterFileError, match="holds configurations of a search, and no numbers"):
        glora.load_adapter(tiny_vit(), tmp_path / "checkpoint-3.pth.tar")


def test_without_a_bias_they_make_one(tmp_path):
    def build() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(6, 4, bias=False))

    draw = torch.Generator().manual_seed(0)
    shapes = {"Ad": (4, 2), "Au": (2, 6), "Bd": (4, 2), "Bu": (2, 6), "Cd": (6, 2), "Cu": (2, 1), "D": (4,), "E": (4,)}
    saved = {f"0.{part}": torch.randn(shape, generator=draw) for part, shape in shapes.items()}
    torch.save(saved, tmp_path / "one.pth")
    adapted = glora.load_adapter(build(), tmp_path / "one.pth")
    w0, x = build()[0].weight, torch.randn(5, 6, generator=draw)
    a, b, c = (saved[f"0.{t}d"] @ saved[f"0.{t}u"] for t in "ABC")
    wanted = x @ (w0 + w0 * a + b).T + (w0 @ c).squeeze(-1) + saved["0.E"]
    torch.testing.assert_close(output(adapted.model, x), wanted.detach(), **NEAR)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda saved: [1], "holds a list"),
        (lambda saved: {"weight": torch.ones(2)}, "no name ends in Ad"),
        (lambda saved: saved | {"blocks.9.attn.qkv.Ad": torch.ones(2, 2)}, "has no 'blocks.9.attn.qkv'"),
        (lambda saved: saved | {"tail.weight": torch.ones(2)}, "has no 'tail'"),
        (lambda saved: {n: v for n, v in saved.items() if n != "blocks.0.attn.qkv.Au"}, "missing or too much"),
        (lambda saved: saved | {"blocks.0.attn.qkv.Ad": torch.ones(36, 5)}, "ranks"),
    ],
)
def test_another_checkpoint_is_refused(tmp_path, change, words):
    torch.save(change(authors_checkpoint(tiny_vit())), tmp_path / "vit.pth")
    with pytest.raises(AdapterFileError, match=words):
        glora.load_adapter(tiny_vit(), tmp_path / "vit.pth")


def test_what_is_no_model_and_no_path_is_told():
    with pytest.raises(ConfigError, match=r"model='vit' is not allowed.*torch.nn.Module"):
        glora.load_adapter("vit", "folder")
    with pytest.raises(ConfigError, match="path=3 is not allowed"):
        glora.load_adapter(torch.nn.Linear(2, 2), 3)
