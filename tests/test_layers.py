"""Every layer type of the table keeps the properties of the suite."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from glora import inject
from glora.adapt import attach, layers
from glora.adapt.sites import base_state
from glora.adapt.support import Support
from glora.genotype import LayerConfig, Site
from glora.registry import load
from glora.space import SearchSpace
from suites.layer_suite import NEAR, LayerSuite, difference, everything, view_of


class TestLinear(LayerSuite):
    def make_layer(self, *, bias: bool) -> nn.Module:
        return nn.Linear(6, 10, bias=bias)

    def make_input(self, batch: int) -> Tensor:
        return torch.randn(batch, 3, 6, generator=torch.Generator().manual_seed(7))


class TestWideLinear(TestLinear):
    """More inputs than outputs, and images instead of tokens."""

    def make_layer(self, *, bias: bool) -> nn.Module:
        return nn.Linear(17, 5, bias=bias)

    def make_input(self, batch: int) -> Tensor:
        return torch.randn(batch, 2, 2, 17, generator=torch.Generator().manual_seed(7))


class TestConv1D(TestLinear):
    """The Linear of transformers that is stored the other way round; it always has a bias."""

    forms: ClassVar = {"bias": 900}

    def make_layer(self, *, bias: bool) -> nn.Module:
        conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
        layer = conv1d(10, 6)
        nn.init.normal_(layer.weight, std=0.3)
        nn.init.normal_(layer.bias, std=0.3)
        return layer


def test_every_row_of_the_table_loads_and_names_itself():
    kinds = set()
    for path in layers.TABLE.values():
        view = load(path)
        assert issubclass(view, layers.View)
        kinds.add(view.kind)
    assert {kind for word in layers.WORDS.values() for kind in word} == kinds


def between(page: str, mark: str) -> list[str]:
    """The rows of a marked table."""
    return page.partition(f"<!-- {mark} -->")[2].partition(f"<!-- /{mark} -->")[0].strip().splitlines()[2:]


def test_the_page_on_layers_has_the_table_and_the_words():
    page = (Path(__file__).parents[1] / "docs" / "background" / "layers.md").read_text(encoding="utf-8")
    rows = [f"| `{pattern}` | {load(path).kind} |" for pattern, path in layers.TABLE.items()]
    assert between(page, "table") == rows
    assert between(page, "words") == [f"| `{word}` | {', '.join(kinds)} |" for word, kinds in layers.WORDS.items()]


def test_a_subclass_with_its_own_forward_plays_through_its_weight():
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * nn.functional.linear(x, self.weight, self.bias)

    class Suite(TestLinear):
        def make_layer(self, *, bias: bool) -> nn.Module:
            return Doubled(6, 10, bias=bias)

    suite = Suite()
    layer, support = suite.adapt("bias")
    attach.state_of(layer).play([suite.spread(support)[1]])
    out = layer(suite.make_input(3))
    attach.merge(layer)
    assert type(layer) is Doubled
    assert difference(out, layer(suite.make_input(3))) <= NEAR


class Dense(nn.Module):
    """A layer type that the table has not: other names, and the weight is stored as `(i, o)`."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 10))
        self.offset = nn.Parameter(torch.randn(10)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.kernel
        return y if self.offset is None else y + self.offset


class DenseView(layers.View):
    kind, weight, bias, new_bias = "dense", "kernel", "offset", True

    def __init__(self, layer: Dense) -> None:
        self.site = Site(self.kind, layer.kernel.shape[1], layer.kernel.shape[0], layer.offset is not None)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.T

    def unmatrix(self, matrix: Tensor, like: Tensor) -> Tensor:
        return matrix.T.contiguous()


@pytest.mark.slow
def test_a_new_layer_type_is_a_view_a_line_and_a_suite(monkeypatch):
    monkeypatch.setitem(layers.TABLE, f"{__name__}.Dense", f"{__name__}:DenseView")
    monkeypatch.setitem(layers.WORDS, "dense", ("dense",))

    class Suite(TestLinear):
        called: ClassVar = False

        def make_layer(self, *, bias: bool) -> nn.Module:
            return Dense(bias=bias)

    for form in Suite.forms:
        Suite().test_fresh_it_is_the_plain_layer_bit_for_bit(form)
        Suite().test_merged_numbers_are_rounded_once(form, sweep="all")
        Suite().test_merged_it_has_the_plain_class_and_keys_in_their_order(form)
    x, model = torch.randn(2, 6), nn.Sequential(Dense(bias=True), nn.ReLU(), nn.Linear(10, 6), Dense(bias=False))
    before = base_state(model, ())
    adapted = inject(model, SearchSpace.paper(), targets=["dense"], head=None, example=x)
    assert {name: site.new_bias for name, site in adapted.sites.items()} == {"0": False, "3": True}
    assert base_state(model, ()).keys() == before.keys(), "a new bias is none of the base's"


# norms


class NormSuite(LayerSuite):
    """A and B, D and E are a vector, a scalar or none."""

    forms: ClassVar = {"bias": 81, "bare": 9}

    def randomized(self, layer: nn.Module) -> nn.Module:
        with torch.no_grad():
            for value in (*layer.parameters(), *layer.buffers()):
                if value.is_floating_point():
                    value.uniform_(0.5, 1.5)
        return layer.eval()


class TestLayerNorm(NormSuite):
    def make_layer(self, *, bias: bool) -> nn.Module:
        return self.randomized(nn.LayerNorm(6, bias=bias))

    def make_input(self, batch: int) -> Tensor:
        return torch.randn(batch, 3, 6, generator=torch.Generator().manual_seed(7))


class TestLayerNormOfImages(TestLayerNorm):
    """Its weight and bias have several dimensions."""

    def make_layer(self, *, bias: bool) -> nn.Module:
        return self.randomized(nn.LayerNorm((3, 6), bias=bias))


class TestRMSNorm(TestLayerNorm):
    forms: ClassVar = {"bare": 9}

    def make_layer(self, *, bias: bool) -> nn.Module:
        return self.randomized(nn.RMSNorm(6))


class TestBatchNorm(NormSuite):
    forms: ClassVar = {"bias": 81}

    def make_layer(self, *, bias: bool) -> nn.Module:
        return self.randomized(nn.BatchNorm2d(6))

    def make_input(self, batch: int) -> Tensor:
        return torch.randn(batch, 6, 3, 2, generator=torch.Generator().manual_seed(7))


class TestBatchNorm1d(TestBatchNorm):
    def make_layer(self, *, bias: bool) -> nn.Module:
        return self.randomized(nn.BatchNorm1d(6))

    def make_input(self, batch: int) -> Tensor:
        return super().make_input(batch)[..., 0, 0]


class TestGroupNorm(TestBatchNorm):
    def make_layer(self, *, bias: bool) -> nn.Module:
        return self.randomized(nn.GroupNorm(2, 6))


class TestInstanceNorm(TestBatchNorm):
    """Plays through its weight, as every norm with a forward of its own does."""

    called: ClassVar = False

    def make_layer(self, *, bias: bool) -> nn.Module:
        return self.randomized(nn.InstanceNorm2d(6, affine=True, track_running_stats=True))

    def is_plain(self, out: Tensor, plain: Tensor) -> bool:
        """Up to rounding: torch 2.6 averages the running statistics over the batch in evaluation too, which stays."""
        return torch.allclose(out, plain, rtol=1e-6, atol=1e-6)


class TestTimmLayerNorm(TestLayerNorm):
    """A forward of its own, which is known."""

    forms: ClassVar = {"bias": 81}

    def make_layer(self, *, bias: bool) -> nn.Module:
        return self.randomized(pytest.importorskip("timm").layers.LayerNorm(6))


class TestLayerNorm2d(TestBatchNorm):
    def make_layer(self, *, bias: bool) -> nn.Module:
        return self.randomized(pytest.importorskip("timm").layers.LayerNorm2d(6))


class TestBatchNormAct2d(TestInstanceNorm):
    """An activation within: only its weight is affine."""

    def make_layer(self, *, bias: bool) -> nn.Module:
        return self.randomized(pytest.importorskip("timm").layers.BatchNormAct2d(6))


class TestOwnRMSNorm(TestRMSNorm):
    called: ClassVar = False

    class CenteredRMSNorm(nn.Module):
        """Gemma's: the factor is 1 + w. Known by its name."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(width))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.rms_norm(x, x.shape[-1:], None, 1e-6) * (1 + self.weight)

    def make_layer(self, *, bias: bool) -> nn.Module:
        return self.randomized(self.CenteredRMSNorm(6))


@pytest.mark.parametrize("x", [torch.randn(4, 6), torch.randn(4, 3, 6), torch.randn(4, 3, 2, 6)], ids=lambda x: x.dim())
def test_a_norm_takes_inputs_of_any_rank_one_genotype_per_sample(x):
    suite = TestLayerNorm()
    layer, support = suite.adapt()
    configs = suite.spread(support)[1:5]
    attach.state_of(layer).play(configs)
    together = layer(x)
    for sample, config in enumerate(configs):
        attach.state_of(layer).play([config])
        assert torch.allclose(layer(x)[sample], together[sample], atol=1e-5)


def test_an_input_without_samples_plays_the_first_genotype(caplog):
    for suite, x in ((TestLayerNormOfImages(), torch.randn(3, 6)), (TestLinear(), torch.randn(6))):
        layer, support = suite.adapt()
        configs = suite.spread(support)[1:4]
        attach.state_of(layer).play(configs)
        caplog.clear()
        mixed = layer(x)
        assert "cannot be told apart" in caplog.text
        attach.state_of(layer).play(configs[:1])
        assert torch.equal(mixed, layer(x))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_a_batch_norm_is_the_plain_one_in_every_mode(momentum, track, training):
    plain = nn.BatchNorm2d(6, momentum=momentum, track_running_stats=track).train(training)
    layer = nn.BatchNorm2d(6, momentum=momentum, track_running_stats=track).train(training)
    site = view_of(layer).site
    space = everything((4,), "elementwise")
    attach.attach(layer, Support(site, space, space.options(site), generator=torch.Generator()))
    for step in range(3):
        x = torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(step))
        if step == 2:
            attach.state_of(layer).play([LayerConfig(A="vector", B="vector", E="vector"), LayerConfig()] * 2)
        assert torch.equal(layer(x), plain(x))
        for (name, mine), (_, theirs) in zip(layer.named_buffers(), plain.named_buffers(), strict=True):
            assert torch.equal(mine, theirs), name
    with pytest.raises(ValueError, match="expected 4D"):
        layer(torch.randn(4, 6))


def test_a_norm_has_neither_lora_nor_c_nor_a_new_bias():
    for layer in (nn.LayerNorm(6), nn.RMSNorm(6)):
        site = replace(view_of(layer).site, new_bias=False)
        options = dict(zip("ABCDE", everything((4, 2), "matrix").options(site), strict=True))
        assert {choice.kind for choices in options.values() for choice in choices} <= {"vector", "scalar", "none"}
        assert {choice.kind for choice in options["C"]} == {"none"}
    adapted = inject(nn.RMSNorm(6), SearchSpace.paper(), targets="norm", head=None, example=torch.randn(2, 6))
    assert not any(site.new_bias for site in adapted.sites.values())


# embeddings


class TestEmbedding(LayerSuite):
    forms: ClassVar = {"bare": 25}

    def make_layer(self, *, bias: bool) -> nn.Module:
        return nn.Embedding(10, 6)

    def make_input(self, batch: int) -> Tensor:
        return (torch.arange(5 * batch) % 10).view(batch, 5)
