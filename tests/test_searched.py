"""Methods other than GLoRA that search: NOAH and PFT. What a genotype plays, and whole runs with their winners."""

from __future__ import annotations

import copy
import io
import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import linear

import glora
from glora.adapt.adapter_file import read_header, read_metadata, read_tensors
from glora.cli import app as cli
from glora.errors import ConfigError, SpaceError, TargetError
from glora.files import read_jsonl
from glora.genes import PlainGenotype
from glora.methods.blocks import find_blocks
from glora.methods.method import get_method
from glora.methods.noah import NOAH
from glora.methods.pft import units_of
from glora.report import plots
from glora.report.outcome import Outcome
from glora.report.result import Result
from glora.report.tables import winner_table
from glora.runs.folder import RunFolder
from glora.runs.loaded import load_run
from glora.runs.resolve import resolve
from glora.runs.run import Run
from glora.training.pace import check_pace
from suites.by_hand import vit_by_hand
from suites.method_suite import Normed, step, timm_vit
from suites.toy import Recorder, tiny

TESTS = Path(__file__).parent
METHODS = {"noah": {"name": "noah", "sizes": [1, 2]}, "pft": {"name": "pft"}}
SWIN = "swin_tiny_patch4_window7_224"
FEW = {"rescore": 2, "controls": 2}
each = pytest.mark.parametrize("name", METHODS)


def images(n: int = 4, size: int = 8) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def scrambled(tuned: Any) -> Any:
    """The same with numbers that matter."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for number in tuned.numbers.values():
            nn.init.normal_(number, std=0.2, generator=generator)
    return tuned


# -- NOAH


def noah(model: nn.Module, head: str = "head", **settings: Any) -> Any:
    return get_method("noah", {"sizes": (1, 2, 3), **settings}).apply(model, head=(head,), seed=0)


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def test_noah_is_its_formula() -> None:
    """Prompts after the tokens, `B A x` on q, k and v, an adapter after the MLP: by hand, from the first k numbers."""
    base = timm_vit()
    tuned = scrambled(noah(copy.deepcopy(base)))
    for seed in range(3):
        genotype = tuned.space.sample(random.Random(seed))
        tuned.activate(genotype)
        numbers = {name: value.detach() for name, value in tuned.numbers.items()}
        by_hand = copy.deepcopy(base)
        sizes = list(genotype.values())

        def of(block: int, name: str, numbers: dict[str, Tensor] = numbers) -> Tensor:
            return numbers[f"blocks.{block}.added.{name}"]

        for k, block in enumerate(by_hand.blocks):  # type: ignore[arg-type]
            r = int(sizes[k]["lora"])
            block.attn.qkv.weight.data += of(k, "lora.up")[:, :r] @ of(k, "lora.down")[:r]

        def before(k: int, x: Tensor, of: Any = of, sizes: Any = sizes) -> Tensor:
            return torch.cat([x, of(k, "prompts.prompts")[: sizes[k]["prompts"]].expand(len(x), -1, -1)], 1)

        def after(k: int, x: Tensor, sizes: Any = sizes) -> Tensor:
            return x[:, : x.shape[1] - sizes[k]["prompts"]]

        def fed(k: int, m: Tensor, _: Tensor, of: Any = of, sizes: Any = sizes) -> Tensor:
            if not (h := sizes[k]["adapter"]):
                return m
            between = linear(m, of(k, "adapter.down.weight")[:h], of(k, "adapter.down.bias")[:h])
            return m + linear(quick_gelu(between), of(k, "adapter.up.weight")[:, :h], of(k, "adapter.up.bias"))

        with torch.no_grad():
            expected = vit_by_hand(by_hand, images(), before=before, fed=fed, after=after)
            torch.testing.assert_close(tuned.model(images()), expected, rtol=1e-4, atol=1e-5)


def test_without_modules_noah_is_the_base_and_so_is_a_fresh_one_without_prompts() -> None:
    base = timm_vit()
    plain = base(images())
    tuned = noah(copy.deepcopy(base))
    largest = tuned.space.largest.to_json()
    assert not torch.equal(tuned.model(images()), plain), "prompts are new keys"
    tuned.activate(PlainGenotype({block: {**cells, "prompts": 0} for block, cells in largest.items()}))
    assert torch.equal(tuned.model(images()), plain)
    scrambled(tuned)
    tuned.activate(tuned.space.smallest)
    assert torch.equal(tuned.model(images()), plain)
    tuned.activate(tuned.space.largest)
    copied = copy.deepcopy(tuned.model)
    assert torch.equal(copied(images()), tuned.model(images())) and not torch.equal(copied(images()), plain)
    tuned.remove()
    assert torch.equal(tuned.model(images()), plain)
    assert list(tuned.model.state_dict()) == list(base.state_dict())
    assert not torch.equal(copied(images()), plain), "a copy has hooks of its own"


def test_noah_counts_as_in_the_paper() -> None:
    """4 d r of LoRA, 2 d h + h + d of an adapter, p d of prompts a block; ViT-B/16, methods of GLoRA's Table 1."""
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224")
    blocks = find_blocks(model, "NOAH").blocks
    space = NOAH().space(blocks, {block.name: 3 * 768 for block in blocks})
    assert space.genes[:3] == ((10, 5, 1, 0),) * 3
    assert space.size == 4**36
    d, rng = 768, random.Random(0)
    for _ in range(5):
        genotype = space.sample(rng)
        numbers = 0
        for cells in genotype.values():
            p, r, h = (int(cells[kind]) for kind in ("prompts", "lora", "adapter"))
            numbers += p * d + 4 * d * r + (2 * d * h + h + d if h else 0)
        assert space.count(genotype) == numbers
    assert space.count(space.largest) == 12 * (7680 + 30720 + 16138) == 654_456
    only = {kind: dict.fromkeys(("prompts", "lora", "adapter"), 0) | {kind: size} for kind, size in
            (("lora", 8), ("adapter", 8), ("prompts", 10))}  # fmt: skip
    sized = NOAH(sizes=(8, 10)).space(blocks, {block.name: 3 * 768 for block in blocks})
    counts = [sized.count({block.name: cells for block in blocks}) for cells in only.values()]
    assert counts == [294_912, 156_768, 92_160], "the rows LoRA, Adapter and VPT-Deep of ten prompts"


def test_gradients_of_a_small_size_stay_in_its_slice() -> None:
    tuned = noah(timm_vit())
    cells = {"prompts": 1, "lora": 2, "adapter": 1}
    tuned.activate(PlainGenotype(dict.fromkeys(tuned.genes.rows, cells)))
    with torch.no_grad():
        for number in tuned.numbers.values():
            number.fill_(0.1)
    tuned.model(images()).sum().backward()
    for name, number in tuned.numbers.items():
        assert number.grad is not None
        inside = tuned.part(name, number.grad, tuned.active)
        assert 0 < inside.count_nonzero() == number.grad.count_nonzero(), name


def test_noah_goes_into_a_vit_of_transformers() -> None:
    """Whose q, k and v are layers of their own: one A for all three, B by rows."""
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    config = transformers.ViTConfig(**shape, image_size=8, patch_size=4, num_labels=3)
    base = transformers.ViTForImageClassification(config).eval()
    tuned = scrambled(noah(copy.deepcopy(base), "classifier"))
    blocks = find_blocks(base, "NOAH").blocks
    only = {"prompts": 0, "lora": 2, "adapter": 0}
    tuned.activate(dict.fromkeys(tuned.genes.rows, only))
    assert tuned.count() == 2 * 2 * 4 * 16
    by_hand = copy.deepcopy(base)
    for block in blocks:
        down, up = (tuned.numbers[f"{block.name}.added.lora.{name}"].detach() for name in ("down", "up"))
        for name, rows in zip(block.attention.reads, up.split(16), strict=True):
            by_hand.get_submodule(name).weight.data += rows[:, :2] @ down[:2]
    with torch.no_grad():
        torch.testing.assert_close(tuned.model(images()).logits, by_hand(images()).logits)
        tuned.activate(tuned.space.largest)
        assert not torch.equal(tuned.model(images()).logits, by_hand(images()).logits)
        tuned.activate(tuned.space.smallest)
        assert torch.equal(tuned.model(images()).logits, base(images()).logits)


@pytest.mark.parametrize("name", [SWIN, "resnet18"])
def test_noah_is_for_a_vit(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(TargetError, match=r"NOAH .*"):
        NOAH().apply(model, head=("head",), seed=0)


# -- PFT


def pft(model: nn.Module, head: str = "head", **settings: Any) -> Any:
    return get_method("pft", settings).apply(model, head=(head,), seed=0)


def rates(tuned: Any, *values: float) -> PlainGenotype:
    """A genotype with these rates over and over."""
    return PlainGenotype({unit: {"rate": values[k % len(values)]} for k, unit in enumerate(tuned.genes.rows)})


def test_pft_plays_w0_and_the_rate_times_delta() -> None:
    base = timm_vit()
    tuned = scrambled(pft(copy.deepcopy(base)))
    genotype = rates(tuned, 1, 0, 0.1)
    tuned.activate(genotype)
    by_hand = copy.deepcopy(base)
    for name, parameter in by_hand.named_parameters():
        if not name.startswith("head."):
            rate = float(genotype[tuned.unit[name]]["rate"])
            parameter.data += rate * tuned.numbers[name].detach()
    with torch.no_grad():
        expected = by_hand(images())
        torch.testing.assert_close(tuned.model(images()), expected)
        with tuned.hold(genotype) as held:
            torch.testing.assert_close(held(images()), expected)
        merged = tuned.merged()
        torch.testing.assert_close(merged(images()), expected)
    for (key, value), (name, wanted) in zip(merged.state_dict().items(), by_hand.state_dict().items(), strict=True):
        assert key == name
        torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
def test_under_adam_the_rate_is_a_learning_rate(optimizer: Any) -> None:
    """Delta at lr is W at rate * lr: the same losses, step by step."""
    plain, tuned = timm_vit(), pft(timm_vit())
    genotype = rates(tuned, 1, 0.1, 0)
    tuned.activate(genotype)
    tuned = tuned.alone(timm_vit())
    units = {name: float(genotype[unit]["rate"]) for name, unit in pft(timm_vit()).unit.items()}
    lr, exact = 1e-3, {"eps": 1e-30, "weight_decay": 0.0}  # eps is the one thing that knows the gradient's size
    groups = [{"params": [p], "lr": lr * units.get(name, 1.0)} for name, p in plain.named_parameters()]
    ours, theirs = optimizer(tuned.parameters(), lr=lr, **exact), optimizer(groups, **exact)
    x, y = images(), torch.tensor([0, 1, 2, 0])
    for _ in range(4):
        losses = []
        for model, chosen in ((tuned.model, ours), (plain, theirs)):
            chosen.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            chosen.step()
            losses.append(float(loss.detach()))
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] < 0.9


def test_only_units_that_learn_are_trained_counted_and_saved(tmp_path: Path) -> None:
    tuned = pft(timm_vit())
    sizes = {name: number.numel() for name, number in tuned.numbers.items()}
    genotype = rates(tuned, 0, 0.1)
    tuned.activate(genotype)
    learning = {name for name, unit in tuned.unit.items() if genotype[unit]["rate"]}
    assert 0 < len(learning) < len(sizes)
    assert tuned.count() == sum(sizes[name] for name in learning)
    alone = tuned.alone(timm_vit())
    assert set(alone.numbers) == learning
    assert len(alone.parameters()) == len(learning) + 2
    alone.save(tmp_path / "a.safetensors", {})
    saved = {name for name in read_tensors(tmp_path / "a.safetensors")[0] if not name.startswith("head/")}
    assert saved == learning
    loaded = glora.load_adapter(timm_vit(), tmp_path / "a.safetensors")
    assert read_header(tmp_path / "a.safetensors")["method"]["genotype"] == genotype.to_json()
    assert torch.equal(loaded.merged()(images()), alone.model(images()))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("vit_base_patch16_224", ["stem", *(f"blocks.{k}" for k in range(12)), "tail"]),
        ("resnet18", ["stem", *(f"layer{k}.{n}" for k in range(1, 5) for n in range(2))]),
        ("convnext_atto", ["stem", *(f"stages.{k}" for k in range(4)), "tail"]),
        ("regnetx_002", ["stem", "s1", "s2", "s3", "s4"]),
        ("vgg11", [*(f"features.{k}" for k in (0, 3, 6, 8, 11, 13, 16, 18)), "tail"]),
    ],
)
def test_the_units_of_a_network_are_its_blocks(name: str, wanted: list[str]) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    head = model.pretrained_cfg["classifier"]
    units = units_of(model, (head,))
    assert list(units) == wanted
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    inside = [each for names in units.values() for each in names]
    assert sorted(inside) == sorted(each for each in sizes if not each.startswith(f"{head}."))
    if name == "vit_base_patch16_224":
        assert sum(sizes[each] for each in inside) == 85_798_656


def test_what_stands_between_blocks_belongs_to_the_later() -> None:
    with torch.device("meta"):
        model = timm.create_model(SWIN)
    units = units_of(model, ("head.fc",))
    assert "layers.1.downsample.reduction.weight" in units["layers.1.blocks.0"]
    assert [unit for unit in units if ".blocks." not in unit] == ["stem", "tail"]


NETWORKS = {"test_resnet": "fc", "test_convnext": "head.fc", "test_efficientnet": "classifier", SWIN: "head.fc"}


@pytest.mark.parametrize("name", NETWORKS)
def test_pft_trains_and_merges_swin_and_convolutional_networks(name: str) -> None:
    torch.manual_seed(0)
    shape = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
    base = timm.create_model(name, num_classes=3, **(shape if name == SWIN else {})).eval()
    statistics = {key: value.clone() for key, value in base.named_buffers()}
    keys, kinds = list(base.state_dict()), [type(module) for module in base.modules()]
    tuned = pft(copy.deepcopy(base), NETWORKS[name])
    step(tuned, images(size=32), lr=1e-4, times=2)
    tuned.activate(rates(tuned, 0.1, 1))
    with torch.no_grad():
        played = tuned.model(images(size=32))
        assert not torch.equal(played, base(images(size=32)))
        merged = tuned.merged()
        assert torch.equal(merged(images(size=32)), played)
    assert list(merged.state_dict()) == keys
    assert [type(module) for module in merged.modules()] == kinds
    assert all(torch.equal(value, statistics[key]) for key, value in merged.named_buffers())


def test_a_weight_that_two_layers_share_has_one_delta() -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3))
        model[1].weight = model[0].weight
        return model

    x, model = torch.randn(5, 6), build()
    tuned = scrambled(get_method("pft", {}).apply(model, head=("2",), seed=0))
    assert set(tuned.numbers) == {"0.weight", "0.bias", "1.bias"}
    with torch.no_grad():
        played = tuned.model(x)
        merged: Any = tuned.merged()
        assert torch.equal(merged(x), played)
    assert merged[0].weight is merged[1].weight
    torch.testing.assert_close(merged[0].weight, build()[0].weight + tuned.numbers["0.weight"])  # type: ignore[index]


def test_recurrent_and_parametrized_layers_stay_frozen() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 3))
    assert list(pft(model, "2").numbers) == ["0.weight", "0.bias"]
    with pytest.raises(TargetError, match="no parameter outside its head"):
        units_of(nn.Sequential(nn.Linear(2, 2)), ("0",))


def test_pft_is_for_models_of_transformers_too() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0, num_labels=3,
        pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.GPT2ForSequenceClassification(config).eval()
    tokens = torch.randint(1, 40, (3, 9))
    plain = model(tokens).logits.detach()
    tuned = pft(model, "score")
    assert list(tuned.genes.rows) == ["stem", "transformer.h.0", "transformer.h.1", "tail"]
    with torch.no_grad():
        assert torch.equal(tuned.model(tokens).logits, plain)
        scrambled(tuned)
        played = tuned.model(tokens).logits
        assert not torch.equal(played, plain)
        assert torch.equal(tuned.merged()(tokens).logits, played)


def test_rates_and_sizes_must_make_sense() -> None:
    for name, wrong in (("pft", {"rates": (0,)}), ("pft", {"rates": (1, 1)}), ("pft", {"rates": (-1, 1)}),
                        ("noah", {"sizes": (1, 1)}), ("noah", {"sizes": (0,)}), ("noah", {"sizes": ()})):  # fmt: skip
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            get_method(name, wrong)


# -- one genotype


@each
def test_one_genotype_is_trained_alone(name: str, photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=32, num_classes=2)
    genotype = get_method(name, {**METHODS[name]}).apply(model, head=("head",), seed=0).space.sample(random.Random(2))
    method = {**METHODS[name], "genotype": genotype.to_json()}
    run = Run(tiny(photos, method=method, train={"epochs": 1}), tmp_path / "run", Recorder())
    assert not run.searches
    assert not run.session.data.notes, "nothing is said of a search"
    result = run.fit()
    assert result is not None and result.parameters == run.tuned.count() > 0
    assert load_run(tmp_path / "run").predict([str(photos / "dark" / "0.png")])[0]["class"] in ("dark", "light")


@each
def test_a_genotype_of_another_model_is_refused(name: str) -> None:
    method = get_method(name, {**METHODS[name], "genotype": {"blocks.7": {"rate": 1}}})
    with pytest.raises(SpaceError, match=r"The genotype lacks .*"):
        method.apply(timm_vit(), head=("head",), seed=0)


@each
def test_only_a_fitting_genotype_plays(name: str) -> None:
    tuned = get_method(name, METHODS[name]).apply(timm_vit(), head=("head",), seed=0)
    wrong = {row: dict.fromkeys(cells, 77) for row, cells in tuned.space.largest.to_json().items()}
    with pytest.raises(SpaceError, match="is not offered 77"):
        tuned.activate(wrong)


# -- whole runs


def experiment(photos: Path, name: str, **changes: Any) -> Any:
    search = {**FEW, **changes.pop("search", {})}
    return tiny(photos, **{"method": METHODS[name], "train": {"epochs": 2}, "search": search, **changes})


@pytest.fixture(scope="module", params=METHODS)
def fitted(request: pytest.FixtureRequest, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished run of each: its name, the run, the result, what was told."""
    reporter = Recorder()
    run = Run(experiment(photos, request.param), tmp_path_factory.mktemp("runs") / "run", reporter)
    return request.param, run, run.fit(), reporter


def without_seconds(journal: Path) -> list[str]:
    records = [{k: v for k, v in record.items() if k != "seconds"} for record in read_jsonl(journal)]
    return sorted(json.dumps(record, sort_keys=True) for record in records if record["event"] != "start")


def test_a_winner_is_searched_trained_anew_tested_and_loaded(fitted: Any, photos: Path) -> None:
    name, run, result, reporter = fitted
    assert any("of the winner alone from the pretrained weights" in line for line in reporter.lines)
    outcome = Outcome.read(run.folder.winner)
    lr = run.session.lr * (2 if name == "noah" else 1)
    assert outcome.polish == {"epochs": 2, "on": "train", "lr": lr, "from": "base"}
    assert result.title == name.upper()
    assert result.example_steps == {"train": 2 * len(run.task.train), "polish": 2 * len(run.task.train)}
    assert set(result.controls) == {"unpolished", "random_mean", "random_best", "largest"}
    genotype = run.tuned.space.decode(outcome.genome)
    assert read_header(run.folder.adapter)["method"]["genotype"] == genotype.to_json()
    assert sum(row["numbers"] for row in outcome.sites.values()) == result.parameters == outcome.parameters
    loaded, test = load_run(run.folder.path), run.task.test
    found = run.session.evaluator.evaluate(loaded.model, test)
    assert found.value("loss") == pytest.approx(result.metrics["test_loss"], rel=1e-5)
    assert loaded.predict([str(photos / "dark" / "0.png")])[0]["class"] in ("dark", "light")
    assert any("It is not merged" in note for note in result.notes) == (name == "noah")
    assert Result.read(run.folder.result) == result


def test_its_training_begins_with_the_pretrained_weights_or_where_asked_with_the_supernets(
    fitted: Any, photos: Path, tmp_path: Path
) -> None:
    name, whole, _, _ = fitted
    base = dict(whole.session.backbone.model.named_parameters())
    starts = {}
    for start in ("base", "supernet"):
        settings = {"polish": 1, "polish_from": start, "polish_lr": 1e-12}
        run = Run(experiment(photos, name, search=settings), tmp_path / start, Recorder())
        run.train()
        outcome = run.search()
        assert outcome is not None and ("from" in (outcome.polish or {})) == (start == "base")
        numbers = read_tensors(run.folder.polished(outcome.key).adapter)[0]
        starts[start] = {key: value for key, value in numbers.items() if not key.startswith("head/")}
        assert starts[start]
        if start == "base":
            assert torch.allclose(numbers["head/head.weight"], base["head.weight"], atol=1e-9)
    added = [key for key in starts["base"] if name == "pft" or key.endswith((".up", "up.weight", "up.bias"))]
    assert all(starts["base"][key].abs().max() < 1e-9 for key in added), "it begins with no change"
    assert any(starts["supernet"][key].abs().max() > 1e-6 for key in added)


@pytest.mark.slow
def test_workers_give_the_same_search(fitted: Any, photos: Path, tmp_path: Path) -> None:
    name, whole, result, _ = fitted
    run = Run(experiment(photos, name, search={"workers": 2}), tmp_path / "run", Recorder())
    again = run.fit()
    assert without_seconds(run.folder.journal) == without_seconds(whole.folder.journal)
    assert again is not None and again.metrics == result.metrics and again.controls == result.controls


VICTIM = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_searched
from suites.toy import Recorder
from glora.runs.run import Run
torch.set_num_threads(1)
run = Run(test_searched.experiment(Path(sys.argv[2]), sys.argv[4]), sys.argv[3], Recorder(kill_trial=5))
run.fit()
"""


@pytest.mark.slow
@each
def test_a_search_that_was_killed_goes_on_to_the_same_end(name: str, photos: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "killed")
    words = [str(TESTS), str(photos), str(folder.path), name]
    done = subprocess.run([sys.executable, "-c", VICTIM, *words], timeout=240, check=False)
    assert done.returncode == -signal.SIGKILL
    assert sum(record["event"] == "score" for record in read_jsonl(folder.journal)) == 6
    again = Run(experiment(photos, name), folder.path, Recorder()).fit()
    whole = Run(experiment(photos, name), tmp_path / "whole", Recorder())
    result = whole.fit()
    assert again is not None and result is not None
    assert without_seconds(folder.journal) == without_seconds(whole.folder.journal)
    assert again.metrics == result.metrics


def test_all_sizes_at_once_and_another_budget_without_a_new_score(photos: Path, tmp_path: Path) -> None:
    searcher = {"name": "nsga2", "population": 6, "generations": 1}
    settings = {"searcher": searcher, "polish": 1, "controls": 0}
    run = Run(experiment(photos, "noah", search=settings), tmp_path / "run", Recorder())
    run.train()
    outcome = run.search()
    assert outcome is not None
    scored = [record for record in read_jsonl(run.folder.journal) if record["event"] == "ask"]
    smallest = min(record["parameters"] for record in scored)
    picked = run.pick(budget=smallest)
    assert picked.parameters == smallest
    assert read_metadata(run.folder.adapter)["info"]["winner"] == picked.key
    assert [record for record in read_jsonl(run.folder.journal) if record["event"] == "ask"] == scored


def test_a_race_eliminates_candidates_of_any_space(photos: Path, tmp_path: Path) -> None:
    search = {"racing": True, "racing_first": 2, "polish": 0}
    run = Run(experiment(photos, "pft", data={"val": 12}, search=search), tmp_path / "run", Recorder())
    run.train()
    outcome = run.search()
    assert outcome is not None and outcome.polish is None
    assert any("piece" in record for record in read_jsonl(run.folder.journal))


@pytest.mark.figures
def test_tables_and_pictures_show_any_winner(
    fitted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, run, result, _ = fitted
    outcome, space = Outcome.read(run.folder.winner), run.tuned.space
    text = io.StringIO()
    Console(file=text, width=120).print(winner_table(outcome))
    row, columns = {"noah": ("block", ["prompts", "lora", "adapter"]), "pft": ("unit", ["rate"])}[name]
    first = next(line for line in text.getvalue().splitlines() if line.startswith(row))
    assert first.split() == [row, *columns, "numbers"]
    assert all(place in text.getvalue() for place in space.rows)
    genotype = space.decode(outcome.genome)
    drawn = plots.layer_plot(genotype, space, tmp_path / "layers.svg")
    assert set(drawn["sites"]) == set(space.rows)
    bars = plots.parameters_plot(genotype, space, tmp_path / "parameters.svg")["layer_types"]
    assert sum(cells[column] for cells in bars.values() for column in columns) == result.parameters
    assert all(label in (tmp_path / "layers.svg").read_text() for label in columns)
    monkeypatch.setattr(sys, "argv", ["glora", "search", str(run.folder.path), "--show"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert "winner" in capsys.readouterr().out


# -- the winner's own training, of any method


def test_what_is_left_open_is_the_methods(photos: Path) -> None:
    def found(method: str, **search: Any) -> tuple[Any, ...]:
        settings = resolve(tiny(photos, method=method, train={"epochs": 3, "lr": 3e-3}, search=search)).search
        return settings.polish, settings.polish_from, settings.polish_lr

    assert found("glora") == (0, None, None)
    assert found("glora", polish=2) == (2, "supernet", pytest.approx(1e-3))
    assert found("glora", polish=2, polish_from="base") == (2, "base", 3e-3)
    assert found("noah") == (3, "base", 6e-3)
    assert found("noah", polish=5, polish_from="supernet") == (5, "supernet", pytest.approx(1e-3))
    assert found("pft", polish_lr=1e-4) == (3, "base", 1e-4)
    assert found("pft", polish=0)[0] == 0
    assert found("lora")[0] == 0


def test_gloras_winner_can_be_trained_anew_too(photos: Path, tmp_path: Path) -> None:
    run = Run(tiny(photos, search={**FEW, "polish": 1, "polish_from": "base"}), tmp_path / "run", Recorder())
    result = run.fit()
    assert result is not None and "unpolished" in result.controls
    assert read_metadata(run.folder.adapter)["info"]["polish"]["from"] == "base"


def test_a_run_polished_before_there_was_a_choice_is_still_read(photos: Path, tmp_path: Path) -> None:
    settings = tiny(photos, search={**FEW, "polish": 1})
    run = Run(settings, tmp_path / "run", Recorder())
    result = run.fit()
    lines = run.folder.config.read_text().splitlines(keepends=True)
    run.folder.config.write_text("".join(line for line in lines if "polish_from" not in line))
    again = Run(settings, tmp_path / "run", Recorder())
    assert again.fit() == result
    assert Run.open(tmp_path / "run", Recorder()).fit() == result


def test_the_layers_of_a_plain_list_are_its_units() -> None:
    assert list(pft(Normed(), "4").genes.rows) == ["0", "1", "3"]


@each
def test_pace_perturbs_what_it_does_not_know_in_neither(name: str) -> None:
    with pytest.raises(ConfigError, match="no layer outside the head trains"):
        check_pace(get_method(name, {}).apply(timm_vit(), head=("head",), seed=0))
