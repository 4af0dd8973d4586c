"""Every row of the table of methods keeps the suite; and what each of them is."""

from __future__ import annotations

import copy
import importlib
import random
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import glora
from glora.adapt.adapter_file import read_header
from glora.errors import StateError, TargetError, UnknownNameError
from glora.methods import METHODS
from glora.methods.method import get_method
from suites.method_suite import MethodSuite, Normed, OnBlocks, step

SOURCE = Path(glora.__file__).parent


class TestGLoRA(MethodSuite):
    method = "glora"


class TestLoRA(MethodSuite):
    method, settings = "lora", {"rank": 2, "alpha": 6.0, "dropout": 0.1}


class TestLoRAInParts(TestLoRA):
    method, settings = "lora", {"rank": 2, "parts": ("q", "v"), "dropout": 0.1, "scaling": "rank_stabilized"}

    def test_running_statistics_of_a_frozen_base_stay(self, images: Tensor) -> None:
        with pytest.raises(TargetError, match="there is none among 3"):
            self.apply(Normed(), head=("4",))


class TestFacTTK(OnBlocks, MethodSuite):
    method, settings = "fact", {"rank": 3, "scale": 0.5}


class TestFacTTT(TestFacTTK):
    method, settings = "fact", {"form": "tt", "rank": 2}


class TestSSF(MethodSuite):
    method = "ssf"


class TestSSFAsTheAuthorsStart(TestSSF):
    method, settings, fresh_is_base = "ssf", {"start": "authors"}, False


class TestRepAdapter(OnBlocks, MethodSuite):
    method, settings = "repadapter", {"hidden": 4, "scale": 2.0}


class TestHiRA(MethodSuite):
    method, settings = "hira", {"rank": 2}


class TestBiases(MethodSuite):
    method = "biases"


class TestBitFit(MethodSuite):
    method = "bitfit"


class TestLinearProbe(MethodSuite):
    method = "linear"


class TestFull(MethodSuite):
    method, statistics_stay = "full", False


class TestAdapter(OnBlocks, MethodSuite):
    method, merges_plain = "adapter", False


class TestLinearHoulsbyAdapter(OnBlocks, MethodSuite):
    method, settings = "adapter", {"form": "houlsby", "activation": "identity"}


class TestAdapterFromTheAuthorsStart(OnBlocks, MethodSuite):
    method, settings = "adapter", {"form": "pfeiffer", "start": "authors"}
    merges_plain, fresh_is_base = False, False


class TestAdaptFormer(OnBlocks, MethodSuite):
    method, settings, merges_plain = "adaptformer", {"scaling": "trained"}, False


class TestVPTShallow(OnBlocks, MethodSuite):
    method, settings = "vpt", {"depth": "shallow", "tokens": 3}
    merges_plain, fresh_is_base = False, False


class TestVPTDeep(OnBlocks, MethodSuite):
    method, settings = "vpt", {"depth": "deep", "tokens": 3, "place": "end"}
    merges_plain, fresh_is_base = False, False


class TestNOAH(OnBlocks, MethodSuite):
    method, settings = "noah", {"sizes": (1, 3)}
    merges_plain, fresh_is_base = False, False


class TestPFT(MethodSuite):
    method = "pft"


def test_every_method_keeps_the_suite() -> None:
    assert {each.method for each in MethodSuite.__subclasses__()} == set(METHODS)


def test_no_stage_asks_for_the_class_of_a_method() -> None:
    """What a run needs of a method is in `Tuned` and `Method`."""
    asks = re.compile(r"isinstance\([^\n]*Tuned\w|TunedAdapter|TunedSubset|\bGLoRA\b|methods\.(?!method\b)\w+")
    for folder in ("runs", "training", "searchers", "report", "cli"):
        for file in sorted((SOURCE / folder).rglob("*.py")):
            code = re.sub(r'""".*?"""|"[^"\n]*"|#.*', "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
            assert not asks.findall(code), file


def build() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("test_vit", num_classes=3, img_size=32).eval()
    return model


def batch(n: int = 4, size: int = 32) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def apply(name: str, settings: dict[str, Any] | None = None) -> Any:
    return get_method(name, settings or {}).apply(build(), head=("head",), seed=0)


def linears(model: nn.Module) -> list[nn.Linear]:
    head = model.get_classifier()  # type: ignore[operator]
    return [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]


def test_lora_is_as_published_and_glora_has_fixed_scales() -> None:
    lora, supernet = (apply(name).adapted.supports for name in ("lora", "glora"))
    assert not any(support.scales for support in lora.values())
    assert all(support.scales for support in supernet.values())


@pytest.mark.parametrize("alpha", [None, 1.0, 8.0, 6.0])
def test_lora_adds_alpha_over_rank_times_its_product(tmp_path: Path, alpha: float | None) -> None:
    """`W0 + alpha / rank * down up`, which is PEFT's; by hand, and in the merged weight and the file."""
    tuned = apply("lora", {"rank": 4, "alpha": alpha})
    layer, support = tuned.model.blocks[0].mlp.fc1, tuned.adapted.supports["blocks.0.mlp.fc1"]
    with torch.no_grad():
        support.down["B"].normal_()
        w0, b0 = (layer.parametrizations[name].original.clone() for name in ("weight", "bias"))
        down, up = support.down["B"], support.up["B"]  # (o, 4), (4, i)
        x, scale = torch.randn(5, w0.shape[1]), 1.0 if alpha is None else alpha / 4
        by_hand = x @ w0.T + b0 + scale * (x @ up.T) @ down.T
        torch.testing.assert_close(layer(x), by_hand, rtol=1e-4, atol=1e-5)
        tuned.save(tmp_path / "lora.safetensors", {})
        merged = tuned.merged().blocks[0].mlp.fc1.weight
        torch.testing.assert_close(merged, w0 + scale * down @ up, rtol=1e-5, atol=1e-6)
    saved = read_header(tmp_path / "lora.safetensors")["scales"]["blocks.0.mlp.fc1"]
    assert saved == ({} if scale == 1 else {"B.lora": scale})
    loaded = glora.load_adapter(build(), tmp_path / "lora.safetensors").merge()
    assert torch.equal(loaded.blocks[0].mlp.fc1.weight, merged)  # type: ignore[index, union-attr]


def test_lora_drops_out_in_training_alone() -> None:
    tuned, x = apply("lora", {"dropout": 0.5}), batch()
    with torch.no_grad():
        for support in tuned.adapted.supports.values():
            support.down["B"].normal_(std=0.1)
        assert torch.equal(tuned.model(x), tuned.model(x))
        tuned.model.train()
        assert not torch.equal(tuned.model(x), tuned.model(x)), "each pass drops others"
        tuned.model.eval()
        played = tuned.model(x)
        assert (tuned.merged()(x) - played).abs().max() <= 1e-5 * played.abs().max()


def test_where_nothing_can_drop_out_it_is_noted() -> None:
    model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    settings = {"dropout": 0.5, "targets": "all", "rank": 2}
    tuned = get_method("lora", settings).apply(model, head=("2",), seed=0)
    assert any("No dropout" in note and note.endswith(": 0.") for note in tuned.notes)


def test_counts_are_without_the_head() -> None:
    model = build()
    sizes = [(layer.out_features, layer.in_features) for layer in linears(model)]
    whole = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in model.head.parameters())  # type: ignore[union-attr, operator]
    wanted = {"lora": 2 * sum(o + i for o, i in sizes), "biases": sum(o for o, _ in sizes), "linear": 0, "full": whole}
    for name, count in wanted.items():
        assert apply(name, {"rank": 2} if name == "lora" else {}).count() == count, name


def test_the_supernet_counts_what_it_plays() -> None:
    tuned = apply("glora", {"sampling": "batch"})
    tuned.before_step(random.Random(3), range(4), 4, 1.0)
    assert tuned.count() == tuned.adapted.count(tuned.adapted.active) > 0


def test_steps_of_equal_generators_play_the_same_subnet() -> None:
    played = []
    for _ in range(2):
        tuned = apply("glora", {"sampling": "batch", "largest": 0})
        rng = random.Random(5)
        played.append([(tuned.before_step(rng, range(4), 4, 0.0), tuned.adapted.active)[1] for _ in range(3)])
    assert played[0] == played[1]
    assert len(set(played[0])) == 3


def test_every_sample_can_play_its_own_subnet_the_same_on_one_process_as_on_two() -> None:
    tuned = apply("glora")

    def played(places: range) -> tuple[Any, ...]:
        tuned.before_step(random.Random(5), places, 12, 0.75)
        active: tuple[Any, ...] = tuned.adapted.active
        return active

    whole = played(range(12))
    assert whole.count(tuned.adapted.space.largest) == 3, "as much as is left of the training"
    assert len(set(whole)) == 1 + 9
    assert (played(range(0, 12, 2)), played(range(1, 12, 2))) == (whole[::2], whole[1::2])


@pytest.mark.parametrize("sampling", ["batch", "sample"])
@pytest.mark.parametrize(("share", "done", "wanted"), [(0.0, 0.0, 0), (1.0, 0.0, 200), (1.0, 0.75, 50), (0.5, 0.5, 50)])
def test_fewer_and_fewer_play_the_largest_subnet(sampling: str, share: float, done: float, wanted: int) -> None:
    tuned = apply("glora", {"sampling": sampling, "largest": share})
    rng, found = random.Random(0), 0
    for _ in range(200 if sampling == "batch" else 50):
        tuned.before_step(rng, range(4), 4, done)
        active = [tuned.adapted.active] if sampling == "batch" else tuned.adapted.active
        found += list(active).count(tuned.adapted.space.largest)
    assert found == pytest.approx(wanted, abs=15)


@pytest.mark.parametrize("name", ["glora", "lora", "biases"])
def test_targets_and_skip_reach_the_model(name: str) -> None:
    sites = apply(name, {"targets": r"blocks\.[01]\.(attn|mlp)", "skip": ("mlp.fc2",)}).adapted.sites
    assert sorted(sites) == [f"blocks.{b}.{leaf}" for b in (0, 1) for leaf in ("attn.proj", "attn.qkv", "mlp.fc1")]


@pytest.mark.parametrize("name", ["glora", "lora", "biases"])
def test_running_statistics_are_trained_and_saved_where_asked(name: str, tmp_path: Path) -> None:
    model = Normed().eval()
    tuned = get_method(name, {"statistics": True}).apply(model, head=("4",), seed=0)
    step(tuned, batch(size=8))
    assert model[1].num_batches_tracked == 1
    tuned.save(tmp_path / "a.safetensors", {})
    assert any("running_mean" in key for key in read_header(tmp_path / "a.safetensors")["statistics"])


def test_full_fine_tuning_saves_its_running_statistics(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base, x = Normed().eval(), batch(size=8)
    plain = {name: value.clone() for name, value in base.state_dict().items()}
    tuned = get_method("full", {}).apply(base, head=("4",), seed=0)
    step(tuned, x)
    assert not torch.equal(base[1].running_mean, plain["1.running_mean"])
    tuned.save(tmp_path / "full.safetensors", {})
    other = Normed().eval()
    other.load_state_dict(plain)
    loaded = get_method("full", {}).load(other, tmp_path / "full.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded.merged()(x), tuned.model(x))
    assert torch.equal(other[1].running_mean, base[1].running_mean)


class Shared(nn.Sequential):
    """Two layers of one weight and one bias, as the embedding and the output layer of language models are."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3))
        self[2].weight, self[2].bias = self[0].weight, self[0].bias


@pytest.mark.parametrize("head", ["3", "2"])
@pytest.mark.parametrize("name", ["full", "bitfit", "linear", "pft"])
def test_a_trained_weight_that_two_layers_share_is_loaded_into_both(name: str, head: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base, x = Shared(), torch.randn(4, 6)
    tuned = get_method(name).apply(copy.deepcopy(base), head=(head,), seed=0)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.1)
    tuned.save_winner(tmp_path / "a", {})
    loaded = glora.load_adapter(base, tmp_path / "a")
    torch.testing.assert_close(loaded.model(x), tuned.model(x))
    assert loaded.model[0].weight is loaded.model[2].weight or name == "pft"


def test_without_a_search_there_is_nothing_to_choose() -> None:
    tuned = apply("linear")
    for ask in (
        tuned.snapshot,
        lambda: tuned.restore(None),
        lambda: tuned.strengthen(2.0),
        lambda: tuned.alone(build()),
    ):
        with pytest.raises(StateError, match="there is nothing to choose"):
            ask()


def test_an_unknown_method_is_told() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'lora'"):
        get_method("loar", {})


@pytest.mark.parametrize("module", sorted({where.partition(":")[0] for where in METHODS.values()}))
def test_the_docstring_of_a_methods_file_ends_with_its_departures(module: str) -> None:
    """What differs from the authors' code, and why: the page of the other methods sends readers there."""
    document = importlib.import_module(module).__doc__
    assert document is not None and document.strip().split("\n\n")[-1].startswith("Departures: ")


def test_biases_are_refused_where_no_target_has_one() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2)).eval()
    with pytest.raises(TargetError, match="Biases trains the biases of layers, and 0 has none"):
        get_method("biases").apply(model, head=("1",), seed=0)
    plain = model[0]
    assert type(plain) is nn.Linear and set(model.state_dict()) == {"0.weight", "1.weight", "1.bias"}


def test_biases_makes_no_bias() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4), nn.Linear(4, 2)).eval()
    tuned = get_method("biases").apply(model, head=("2",), seed=0)
    assert tuned.count() == 4 and not tuned.new_keys


@pytest.mark.parametrize("first", ["lora", "fact", "pft"])
@pytest.mark.parametrize("second", ["linear", "bitfit", "full", "adapter", "adaptformer", "vpt", "noah", "pft"])
def test_a_model_whose_weights_another_method_shows_changed_is_refused(first: str, second: str) -> None:
    """Its file would be taken for one of the plain base, and play something else there."""
    tuned = apply(first)
    names = [name for name, _ in tuned.model.named_modules()]
    with pytest.raises(StateError, match=r"model is adapted already\.|has weights of a method already\."):
        get_method(second).apply(tuned.model, head=("head",), seed=0)
    assert [name for name, _ in tuned.model.named_modules()] == names
    get_method(second).apply(tuned.merged(), head=("head",), seed=0)
