"""`glora soup`: the base plus the mean of what several trainings change, as one plain model and as an adapter."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from typer.testing import CliRunner

import glora
from glora.adapt.adapter_file import read_header
from glora.backbones import load_backbone
from glora.cli.app import app
from glora.errors import ConfigError, RunError, StateError
from glora.genotype import Genotype, LayerConfig
from glora.methods.method import get_method
from glora.runs.loaded import load_run
from glora.runs.run import Run
from glora.runs.soup import Soup, _Means, soup
from suites.toy import Recorder, image_folder, tiny

RATE: dict[str, Any] = {"train": {"epochs": 3, "batch_size": 8, "lr": 3e-2}}


def trained(folder: Path, photos: Path, **changes: Any) -> Path:
    Run(tiny(photos, **{**RATE, **changes}), folder, Recorder()).fit()
    return folder


@pytest.fixture(scope="module")
def seeds(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Method -> finished runs of it that see the images in other orders; the base is the same."""
    root = tmp_path_factory.mktemp("soup")
    return {
        method: [trained(root / f"{method}{lr}", photos, method=method, train={"lr": lr}) for lr in (1e-2, 3e-2, 5e-2)]
        for method in ("lora", "glora")
    }


def states(runs: list[Path]) -> list[dict[str, Tensor]]:
    return [load_run(run).model.state_dict() for run in runs]


@pytest.mark.parametrize("method", ["lora", "glora"])
def test_every_number_is_the_mean_of_the_merged_models_and_what_did_not_train_is_the_bases(
    seeds: dict[str, list[Path]], method: str
) -> None:
    runs = seeds[method]
    made = soup(runs, Recorder())
    mean, members = made.model.state_dict(), states(runs)
    assert mean.keys() == members[0].keys()
    for name, value in mean.items():
        expected = torch.stack([each[name].double() for each in members]).mean(0)
        assert value.dtype == members[0][name].dtype
        assert torch.allclose(value.double(), expected, rtol=1e-6, atol=1e-8), name
        if all(torch.equal(each[name], members[0][name]) for each in members):
            assert torch.equal(value, members[0][name]), name
    assert not torch.equal(mean["head.weight"], members[0]["head.weight"])


@pytest.mark.parametrize("method", ["lora", "glora"])
def test_the_adapter_is_the_same_model(seeds: dict[str, list[Path]], method: str, tmp_path: Path) -> None:
    made = soup(seeds[method], Recorder())
    made.save_adapter(tmp_path / "soup.safetensors")
    info = read_header(tmp_path / "soup.safetensors")["info"]
    assert info["soup"] == {"runs": [run.name for run in seeds[method]], "of": 3}
    assert "winner" not in info
    base = load_backbone(**info["backbone"], num_classes=2).model.eval()
    adapted = glora.load_adapter(base, tmp_path / "soup.safetensors")
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = made.model(x)
        assert torch.allclose(adapted.model(x), expected, atol=1e-4 * expected.abs().max().item())
        assert torch.allclose(adapted.merge()(x), expected, atol=1e-4 * expected.abs().max().item())


def test_the_best_genotypes_of_one_search_are_a_soup(seeds: dict[str, list[Path]]) -> None:
    run = seeds["glora"][0]
    made = soup([run], Recorder(), best=3)
    opened = Run.open(run, Recorder())
    search = opened.searching()
    search.put_finished()
    best = sorted(search.finished.trials, key=lambda trial: trial.rank)[:3]
    plains = []
    for trial in best:
        search.tuned.activate(trial.genotype)
        plains.append(search.tuned.alone(opened.session.base()).merged().state_dict())
    for name, value in made.model.state_dict().items():
        expected = torch.stack([each[name].double() for each in plains]).mean(0)
        assert torch.allclose(value.double(), expected, rtol=1e-6, atol=1e-8), name
    with pytest.raises(ConfigError, match="not 99"):
        soup([run], Recorder(), best=99)
    with pytest.raises(RunError, match="nothing to search"):
        soup(seeds["lora"][:1], Recorder(), best=2)


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 3))
    model.pretrained_cfg = {"input_size": (8,)}  # by which layers that are called are found
    return model


def test_methods_may_differ_and_a_new_bias_counts_as_zero_where_there_is_none(tmp_path: Path) -> None:
    x = torch.randn(48, 8, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, x[:, :3].argmax(1))
    quick: dict[str, Any] = {"epochs": 2, "population": 2, "generations": 0, "controls": 1, "progress": False}
    members = []
    for name, method in {"a": {"name": "lora"}, "b": {"name": "glora", "new_bias": True}}.items():
        result = glora.fit(net(), train=data, method=method, lr=3e-2, out=tmp_path / name, **quick)
        members.append(result.model.state_dict())
    made = soup([tmp_path / "a", tmp_path / "b"], Recorder(), model=net())
    assert members[1].keys() - members[0].keys() == {"0.bias"} == {*made.loaded.new_keys}
    assert torch.allclose(made.model.state_dict()["0.bias"], members[1]["0.bias"] / 2)
    made.save_adapter(tmp_path / "soup.safetensors")
    adapted = glora.load_adapter(net(), tmp_path / "soup.safetensors")
    assert torch.allclose(adapted.model(x), made.model(x), atol=1e-5)


class Normed(nn.Module):
    """A linear layer and a LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 3)
        self.pretrained_cfg = {"input_size": (8,)}

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.first(x)).relu())
        return logits


@pytest.mark.parametrize("product", ["matrix", "elementwise"])
def test_vectors_and_scalars_a_and_norms_have_an_adapter(product: str, tmp_path: Path) -> None:
    """Beside members that have none there, or a LoRA B."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = Normed()
    space = {"product": product, "ranks": [2, 1], "variant": "paper", "targets": "all"}
    means, plain = _Means(), base
    for first, norm in (
        (LayerConfig(A="vector", B="lora:2", E="vector"), LayerConfig(A="vector", D="vector")),
        (LayerConfig(A="scalar", B="vector"), LayerConfig()),
        (LayerConfig(B="lora:1"), LayerConfig(A="scalar", B="vector")),
    ):
        tuned = get_method("glora", space).apply(copy.deepcopy(base), head=("head",), seed=0)
        tuned.activate(Genotype({"first": first, "norm": norm}))
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(means.count)) / 3)
        plain = means.add(tuned.alone(copy.deepcopy(base)))
    means.put(plain)
    loaded: Any = SimpleNamespace(model=plain, info={"head": ["head"]})
    Soup(loaded, means, lambda: copy.deepcopy(base)).save_adapter(tmp_path / "soup.safetensors")
    adapted = glora.load_adapter(copy.deepcopy(base), tmp_path / "soup.safetensors")
    x = torch.randn(48, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(adapted.model(x), plain(x), atol=1e-5)
        assert torch.allclose(adapted.merge()(x), plain(x), atol=1e-5)
        assert not torch.allclose(base(x), plain(x), atol=0.1)


def test_a_base_of_half_precision_is_rounded_once(vit) -> None:
    means, exact = _Means(), []
    for seed in (1, 2, 3):
        for half in (True, False):
            model = vit().bfloat16() if half else vit().bfloat16().float()
            tuned = get_method("lora", {"rank": 2}).apply(model, head=("head",), seed=seed)
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for parameter in tuned.parameters():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)
            if half:
                plain = means.add(tuned)
            else:
                exact.append(tuned.merged().state_dict())
    means.put(plain)
    for name, value in plain.state_dict().items():
        expected = torch.stack([each[name].double() for each in exact]).mean(0)
        if not name.startswith("head"):  # it is trained in float32 here
            assert value.dtype == torch.bfloat16
            assert torch.equal(value, expected.bfloat16()), name


def test_what_does_not_fit_together_is_refused_by_name(
    seeds: dict[str, list[Path]], photos: Path, tmp_path: Path
) -> None:
    first = seeds["lora"][0]
    others = image_folder(tmp_path / "others", classes=("dark", "bright"))
    other = trained(tmp_path / "classes", others, method="lora")
    with pytest.raises(RunError, match=r"what is learned, such as the classes.*bright"):
        soup([first, other], Recorder())
    small = trained(tmp_path / "base", photos, method="lora", seed=1)
    with pytest.raises(RunError, match=r"differ in the base"):
        soup([first, small], Recorder())
    with pytest.raises(ConfigError, match="One run is no soup"):
        soup([first], Recorder())
    with pytest.raises(ConfigError, match="best 2 of 2 runs"):
        soup(seeds["lora"][:2], Recorder(), best=2)


def test_a_change_of_full_rank_has_a_plain_model_and_no_adapter(photos: Path, tmp_path: Path) -> None:
    method = {"name": "glora", "product": "elementwise", "ranks": [2]}
    runs = [trained(tmp_path / str(lr), photos, method=method, train={"lr": lr}) for lr in (1e-2, 3e-2)]
    made = soup(runs, Recorder())
    with pytest.raises(StateError, match=r"full rank.*--to merged"):
        made.save_adapter(tmp_path / "soup.safetensors")
    assert made.save(tmp_path / "plain.safetensors")
    assert not (tmp_path / "soup.safetensors").exists()


def test_the_command_writes_both(seeds: dict[str, list[Path]], tmp_path: Path) -> None:
    words = ["soup", *map(str, seeds["lora"]), "--out"]
    done = CliRunner().invoke(app, [*words, str(tmp_path / "plain.safetensors")])
    assert done.exit_code == 0, done.output
    expected = soup(seeds["lora"], Recorder()).model.state_dict()
    found = load_file(tmp_path / "plain.safetensors")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    done = CliRunner().invoke(app, [*words, str(tmp_path / "adapter.safetensors"), "--to", "adapter"])
    assert done.exit_code == 0, done.output
    assert read_header(tmp_path / "adapter.safetensors")["info"]["soup"]["of"] == 3
    assert CliRunner().invoke(app, [*words, "x", "--to", "salad"]).exit_code == 2
