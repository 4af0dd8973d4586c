"""The rounding error of merged layers: of every layer type, choice and dtype, against the formula in long double.

    python benchmarks/errors.py                          # every layer type; writes results/errors/*.json
    python benchmarks/errors.py --layers Linear Conv2d
    python benchmarks/errors.py --table                  # the page of the committed results

A case is one layer, product, dtype, configuration of the five support tensors, and kind of values. The truth is Eq. 13
and 14 and the layer itself, computed in numpy's long double from the stored numbers. Three errors, each the largest of
the outputs in units of the dtype's epsilon times the largest output:

- `error`: of the merged layer;
- `own`: of the plain layer, with the true weight and bias rounded once to the dtype, against itself in long double;
- `rounding`: what that one rounding of weight and bias changes, in long double.

The bar is `own + rounding`. Ordinary values are normal; extreme ones are weights and inputs over many powers of two,
and support tensors of -1, 100, -100, 1e-7 and 0. Beside it PEFT's LoRA and GLoRA, on the layers that they take.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from errors_page import PAGE, page
from torch import Tensor, nn

from glora.adapt import attach
from glora.adapt.layers.quantized import is_quantized
from glora.adapt.layers.table import views_of
from glora.adapt.support import Support
from glora.errors import GloraError
from glora.files import write_json
from glora.genotype import TENSORS, LayerConfig
from glora.report.result import Result
from glora.space import SearchSpace
from glora.training.device import device_name

FOLDER = Path(__file__).parent.parent / "results" / "errors"
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
VALUES = ("ordinary", "extreme")
PRODUCTS = ("elementwise", "matrix")
RANK = 4
EXTREMES = (-1.0, 100.0, -100.0, 1e-7, 0.0)
ALMOST = 1 + 1e-6  # of the bar: a float64 on the edge between two numbers may be rounded to either
Long = np.ndarray[Any, np.dtype[np.longdouble]]


def long(value: Tensor) -> Long:
    """The numbers of a tensor, exactly."""
    return value.detach().double().numpy().astype(np.longdouble)


def short(value: Long) -> Tensor:
    """The nearest float64 numbers."""
    return torch.from_numpy(value.astype(np.float64))


# The layers


@dataclass
class Subject:
    """A layer type.

    Attributes:
        make: A fresh float32 layer.
        shape: Of its input; integers below `ids` where that is set.
        standardise: Of a norm: the input in long double, normalised.
        quantize: Makes the layer what is adapted, once it has its dtype.
        dtypes: Those that it has.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    ids: int = 0
    standardise: Callable[[Any, Long], Long] | None = None
    quantize: Callable[[nn.Module], None] | None = None
    dtypes: Sequence[str] = tuple(DTYPES)


def standardised(x: Long, axes: int | tuple[int, ...], eps: float, *, centred: bool = True) -> Long:
    """x over its root mean square along these axes, without its mean."""
    x = x - x.mean(axes, keepdims=True) if centred else x
    found: Long = x / np.sqrt((x * x).mean(axes, keepdims=True) + np.longdouble(eps))
    return found


def by_groups(layer: Any, x: Long) -> Long:
    """What `nn.GroupNorm` does."""
    return standardised(x.reshape(len(x), layer.num_groups, -1), -1, layer.eps).reshape(x.shape)


def by_statistics(layer: Any, x: Long) -> Long:
    """What a batch norm does in evaluation."""
    mean, variance = (long(each)[:, None, None] for each in (layer.running_mean, layer.running_var))
    found: Long = (x - mean) / np.sqrt(variance + np.longdouble(layer.eps))
    return found


def tracked(layer: Any) -> nn.Module:
    """A batch norm that has seen something, in evaluation."""
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    found: nn.Module = layer.eval()
    return found


def llama_norm() -> nn.Module:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    return LlamaRMSNorm(24, eps=1e-5)


def conv1d() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(16, 32)


def timm_norm() -> nn.Module:
    from timm.layers import LayerNorm2d

    return LayerNorm2d(12, eps=1e-5)


def int8(layer: nn.Module) -> None:
    """torchao's weight-only int8."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(layer, Int8WeightOnlyConfig())


SUBJECTS: dict[str, Subject] = {
    "Linear": Subject(lambda: nn.Linear(48, 24), (8, 48)),
    "Conv1D (transformers)": Subject(conv1d, (8, 32)),
    "Linear, int8 (torchao)": Subject(
        lambda: nn.Linear(32, 16), (8, 32), quantize=int8, dtypes=("fp32", "bf16", "fp16")
    ),
    "MultiheadAttention": Subject(lambda: nn.MultiheadAttention(16, 2, batch_first=True).eval(), (2, 5, 16)),
    "Conv1d": Subject(lambda: nn.Conv1d(8, 12, 3, padding=1, groups=2), (2, 8, 10)),
    "Conv2d": Subject(lambda: nn.Conv2d(6, 8, 3, padding=1), (2, 6, 6, 6)),
    "Conv3d": Subject(lambda: nn.Conv3d(4, 6, 2, stride=2), (2, 4, 4, 4, 4)),
    "ConvTranspose2d": Subject(lambda: nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2), (2, 8, 4, 4)),
    "Embedding": Subject(lambda: nn.Embedding(20, 12, padding_idx=3), (6, 9), ids=20),
    "EmbeddingBag": Subject(lambda: nn.EmbeddingBag(20, 12, mode="sum"), (6, 8), ids=20),
    "LayerNorm": Subject(
        lambda: nn.LayerNorm(24), (4, 5, 24), standardise=lambda layer, x: standardised(x, -1, layer.eps)
    ),
    "LayerNorm2d (timm)": Subject(timm_norm, (2, 12, 4, 4), standardise=lambda layer, x: standardised(x, 1, layer.eps)),
    "RMSNorm": Subject(
        lambda: nn.RMSNorm(24, eps=1e-5),
        (4, 5, 24),
        standardise=lambda layer, x: standardised(x, -1, layer.eps, centred=False),
    ),
    "LlamaRMSNorm (transformers)": Subject(
        llama_norm,
        (4, 5, 24),
        standardise=lambda layer, x: standardised(x, -1, layer.variance_epsilon, centred=False),
    ),
    "GroupNorm": Subject(lambda: nn.GroupNorm(3, 12), (2, 12, 4, 4), standardise=by_groups),
    "BatchNorm2d": Subject(lambda: tracked(nn.BatchNorm2d(12)), (2, 12, 4, 4), standardise=by_statistics),
    "InstanceNorm2d": Subject(
        lambda: nn.InstanceNorm2d(12, affine=True),
        (2, 12, 4, 4),
        standardise=lambda layer, x: standardised(x, (2, 3), layer.eps),
    ),
}


# One layer with its truth


def spread_out(value: Tensor, low: int, high: int, generator: torch.Generator) -> Tensor:
    """The numbers, each times a power of two between these."""
    return value * 2.0 ** torch.randint(low, high + 1, value.shape, generator=generator)


class Measured:
    """A layer of one dtype with its input, adapted, and its truth.

    Args:
        subject: The layer type.
        dtype: Its numbers.
        values: `"ordinary"` or `"extreme"`.
        product: The reading of `W0 * A`.
        scaling: The fixed scales of the support tensors.
    """

    def __init__(
        self, subject: Subject, dtype: str, values: str, product: Any, scaling: Literal["fan_in", "none"] = "fan_in"
    ) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.dtype, self.values = DTYPES[dtype], values
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer: Any = subject.make()
        self._fill()
        self.layer.to(self.dtype).requires_grad_(False)
        if subject.quantize is not None:
            subject.quantize(self.layer)
        ((_, self.view),) = views_of(self.layer).items()
        self.x = self._input(subject)
        self.plain_state = {name: plain_numbers(value) for name, value in self.layer.named_parameters()}
        weight = getattr(self.layer, self.view.weight)
        self.like = self.view.matrix(weight).new_empty(weight.shape)
        self.w0 = long(self.view.matrix(weight))
        bias = getattr(self.layer, self.view.bias, None) if self.view.bias else None
        self.b0 = None if bias is None else long(bias.flatten())
        self.truth = self._truth(subject)
        space = SearchSpace(ranks=(RANK,), product=product, variant="paper", scaling=scaling)
        self.support = Support(self.view.site, space, space.options(self.view.site), generator=self.generator)
        self._randomise()
        attach.attach(self.layer, self.support)

    def _fill(self) -> None:
        with torch.no_grad():
            for value in self.layer.parameters():
                drawn = torch.randn(value.shape, generator=self.generator)
                value.copy_(drawn / max(1, value[0].numel()) ** 0.5 if value.dim() > 1 else drawn)
                if self.values == "extreme":
                    value.copy_(spread_out(value, -8, 3, self.generator))

    def _input(self, subject: Subject) -> Tensor:
        if subject.ids:
            return torch.randint(subject.ids, subject.shape, generator=self.generator)
        x = torch.randn(subject.shape, generator=self.generator)
        return (spread_out(x, -6, 2, self.generator) if self.values == "extreme" else x).to(self.dtype)

    def _randomise(self) -> None:
        extremes = torch.tensor(EXTREMES)
        with torch.no_grad():
            for value in self.support.parameters():
                value.copy_(torch.randn(value.shape, generator=self.generator) * 0.3)
            for value in self.support.down.values() if self.values == "extreme" else ():
                value.copy_(extremes[torch.randint(len(extremes), value.shape, generator=self.generator)])

    # The truth

    def _truth(self, subject: Subject) -> Callable[[Long, Long | None], Long]:
        """The layer's output in long double for a weight `(o, i)` and a bias `(o,)`."""
        if isinstance(self.layer, nn.MultiheadAttention):
            return self._attention
        design, shift = self._design(subject), self._shift(subject)

        def affine(weight: Long, bias: Long | None) -> Long:
            y = design @ weight.ravel()
            found: Long = y if bias is None else y + shift @ bias
            return found

        return affine

    def _design(self, subject: Subject) -> Long:
        """What every output is of every number of the weight: the inputs themselves, so that this is exact."""
        o, i = self.w0.shape
        twin, x = self._twin(subject), self.x if subject.ids else self.x.double()
        columns = []
        for number in range(o * i):
            one = torch.zeros(o * i, dtype=torch.float64)
            one[number] = 1
            twin._parameters[self.view.weight] = nn.Parameter(self.view.unmatrix(one.view(o, i), self.like.double()))
            columns.append(twin(x).detach().flatten())
        design = long(torch.stack(columns, 1))
        if subject.standardise is None:
            return design
        normalised = subject.standardise(self.layer, long(self.x)).ravel()  # the twin's has a float64's rounding
        found: Long = np.where(design != 0, normalised[:, None], design)
        return found

    def _twin(self, subject: Subject) -> Any:
        """The plain layer in float64, without a bias."""
        with torch.random.fork_rng():
            twin = subject.make().double().requires_grad_(False)
        twin.load_state_dict({k: v.double() for k, v in self.layer.named_buffers()}, strict=False)
        if self.b0 is not None:
            twin.get_parameter(self.view.bias).zero_()
        return twin

    def _shift(self, subject: Subject) -> Long:
        """What every output is of every number of the bias: 0 or 1."""
        if self.b0 is None:
            return np.zeros((0, 0), dtype=np.longdouble)
        twin, x = self._twin(subject), self.x.double()
        twin.get_parameter(self.view.weight).zero_()
        columns = []
        for number in range(len(self.b0)):
            bias = twin.get_parameter(self.view.bias)
            bias.zero_()[number] = 1
            columns.append(twin(x).detach().flatten())
        return long(torch.stack(columns, 1))

    def _attention(self, weight: Long, bias: Long | None) -> Long:
        """`nn.MultiheadAttention` on itself."""
        assert bias is not None
        x, heads = long(self.x), self.layer.num_heads
        q, k, v = np.split(x @ weight.T + bias, 3, -1)
        n, length, width = q.shape
        q, k, v = (each.reshape(n, length, heads, -1).transpose(0, 2, 1, 3) for each in (q, k, v))
        scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(np.longdouble(width // heads))
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        out = mixed.transpose(0, 2, 1, 3).reshape(n, length, width)
        found: Long = (out @ long(self.layer.out_proj.weight).T + long(self.layer.out_proj.bias)).ravel()
        return found

    # A case

    def output(self, layer: Any) -> Tensor:
        """What a layer of this type gives for the input."""
        y: Tensor = layer(self.x, self.x, self.x)[0] if isinstance(layer, nn.MultiheadAttention) else layer(self.x)
        return y

    def case(self, config: LayerConfig) -> dict[str, float] | None:
        """The three errors of a configuration, and whether the base came back.

        None where the dtype cannot hold the weight, which is refused, or the plain layer's own output.
        """
        weight, bias = effective(self.support, self.w0, self.b0, config)
        next(iter(attach.adapters_of(self.layer).values())).play([config])
        try:
            base = attach.merge(self.layer)
        except GloraError:
            return None
        with torch.no_grad():
            found = errors(self, weight, bias, self.output(self.layer))
        self.layer._parameters.update(base)
        now = {name: plain_numbers(value) for name, value in self.layer.named_parameters()}
        found["detached"] = all(torch.equal(now[name], value) for name, value in self.plain_state.items())
        attach.attach(self.layer, self.support)
        return found if np.isfinite(found["own"]) else None


def plain_numbers(value: Any) -> Tensor:
    """A copy of a parameter's numbers, of a quantised one what it stands for."""
    found: Tensor = value.dequantize() if is_quantized(value) else value.detach().clone()
    return found


def effective(support: Support, w0: Long, b0: Long | None, config: LayerConfig) -> tuple[Long, Long | None]:
    """Eq. 13 and 14 in long double: the weight `(o, i)` and the bias `(o,)`."""
    a, b, c, d, e = (whole(support, tensor, config) for tensor in TENSORS)
    weight = w0.copy()
    if a is not None and support.is_matrix:
        mixed = support.site.mixed
        positions = w0.reshape(len(w0), mixed, -1)
        full = a if config.A.kind == "lora" else np.diag(np.broadcast_to(a.ravel(), (mixed,)))
        weight = weight + np.einsum("omk,mn->onk", positions, full).reshape(w0.shape)
    elif a is not None:
        weight = weight + w0 * a
    weight = weight if b is None else weight + b
    if support.site.fixed is not None:
        weight[support.site.fixed] = w0[support.site.fixed]
    if b0 is None:
        return weight, None
    bias = b0 if c is None else b0 + w0 @ c.ravel()
    bias = bias if d is None else bias + d.ravel() * b0
    return weight, bias if e is None else bias + e.ravel()


def whole(support: Support, tensor: str, config: LayerConfig) -> Long | None:
    """One support tensor in long double, its fixed scale included; None where it is `none`."""
    choice = getattr(config, tensor)
    if choice.kind == "none":
        return None
    parts = {side: long(value) for side, value in support.slices(tensor, config).items()}
    product = parts["down"] @ parts["up"] if "up" in parts else parts["down"]
    found: Long = product * np.longdouble(support.scale(tensor, choice))
    return found


def errors(measured: Measured, weight: Long, bias: Long | None, y: Tensor) -> dict[str, float]:
    """The errors of an output y against a layer with this true weight and bias; the layer is the plain one, merged."""
    layer, view, dtype = measured.layer, measured.view, measured.dtype
    truth = measured.truth(weight, bias)
    rounded = {view.weight: view.unmatrix(short(weight).to(dtype), measured.like)}
    if bias is not None:
        rounded[view.bias] = short(bias).to(dtype).view_as(getattr(layer, view.bias))
    if is_quantized(layer._parameters.get(view.weight)):  # nothing changes it, and its own kernel multiplies
        rounded.pop(view.weight)
    nearest = measured.truth(
        long(view.matrix(rounded[view.weight])) if view.weight in rounded else weight,
        None if bias is None else long(rounded[view.bias].flatten()),
    )
    kept = dict(layer._parameters)
    layer._parameters.update({name: nn.Parameter(value, requires_grad=False) for name, value in rounded.items()})
    with torch.no_grad():
        own = measured.output(layer)
    layer._parameters.update(kept)
    unit = np.longdouble(torch.finfo(dtype).eps) * max(np.abs(truth).max(), np.longdouble(torch.finfo(dtype).tiny))

    def largest(difference: Long) -> float:
        return float(np.abs(difference).max() / unit)

    return {
        "error": largest(long(y).ravel() - truth),
        "own": largest(long(own).ravel() - nearest),
        "rounding": largest(nearest - truth),
    }


# Tables of cases


@dataclass
class Tally:
    """Of many cases: the one with the largest error, and how many missed the bar."""

    cases: int = 0
    refused: int = 0
    missed: int = 0
    not_detached: int = 0
    ratio: float = 0.0
    largest: dict[str, float] = field(default_factory=lambda: {"error": -1.0, "own": 0.0, "rounding": 0.0})

    def add(self, found: Mapping[str, float] | None) -> None:
        if found is None:
            self.refused += 1
            return
        self.cases += 1
        bar = found["own"] + found["rounding"]
        self.missed += found["error"] > bar * ALMOST
        self.ratio = max(self.ratio, found["error"] / bar if bar else float(found["error"] > 0))
        self.not_detached += not found.get("detached", True)
        if found["error"] > self.largest["error"]:
            self.largest = {name: found[name] for name in ("error", "own", "rounding")}

    def row(self, **about: Any) -> dict[str, Any]:
        counts = {"cases": self.cases, "refused": self.refused, "missed": self.missed}
        numbers = {name: float(f"{value:.4g}") for name, value in (*self.largest.items(), ("ratio", self.ratio))}
        return {**about, **counts, "not_detached": self.not_detached, **numbers}


def rows(name: str, subject: Subject) -> Iterator[dict[str, Any]]:
    """The rows of a layer type: one for each dtype, kind of values, support tensor and choice."""
    for dtype, values in itertools.product(subject.dtypes, VALUES):
        tallies: dict[tuple[str, str], Tally] = {("", ""): Tally()}
        for product in PRODUCTS:
            measured = Measured(subject, dtype, values, product)
            options = measured.support.space.options(measured.support.site)
            if product != PRODUCTS[0] and not measured.support.is_matrix:
                continue  # of a norm or an embedding both are one
            for choices in itertools.product(*options):
                found = measured.case(LayerConfig(*choices))
                keys = [(tensor, choice.kind) for tensor, choice in zip(TENSORS, choices, strict=True)]
                for key in (("", ""), *keys):
                    tallies.setdefault(key, Tally()).add(found)
        for (tensor, choice), tally in tallies.items():
            if not tensor or sum(key[0] == tensor for key in tallies) > 1:  # else it is offered nowhere
                yield tally.row(dtype=dtype, values=values, tensor=tensor, choice=choice)


# PEFT


PEFT_LORA = ("Linear", "Conv1D (transformers)", "Conv2d", "Conv3d", "Embedding")
PEFT_GLORA = ("Linear",)


def peft_rows() -> Iterator[dict[str, Any]]:
    """Error and drift of PEFT's LoRA and GLoRA after one merge and unmerge, and of glora's same configuration."""
    import peft

    for name in PEFT_LORA:
        for dtype, values in itertools.product(DTYPES, VALUES):
            measured = Measured(SUBJECTS[name], dtype, values, "elementwise", "none")
            attach.detach(measured.layer)
            wanted = LayerConfig(B=f"lora:{RANK}")
            fan = {"fan_in_fan_out": True} if "Conv1D" in name else {}
            settings = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["layer"], **fan)
            yield peft_row(measured, settings, wanted, "LoRA", name, dtype, values)
    kinds = {"constant": "scalar", "lora": f"lora:{RANK}"}
    for name in PEFT_GLORA:
        for dtype, values in itertools.product(DTYPES, VALUES):
            for ab, c, de in itertools.product(
                ("lora", "vector", "constant"), ("lora", "vector", "none"), ("vector", "constant", "none")
            ):
                measured = Measured(SUBJECTS[name], dtype, values, "elementwise", "none")
                attach.detach(measured.layer)
                a, third, fourth = (kinds.get(kind, kind) for kind in (ab, c, de))
                wanted = LayerConfig(A=a, B=a, C=third, D=fourth, E=fourth)
                chosen = {"config_A_B": ab, "config_C": c, "config_D_E": de}
                settings = peft.GloraConfig(r=RANK, target_modules=["layer"], **chosen)
                about = f"{ab}, {c}, {de}"
                yield peft_row(measured, settings, wanted, "GLoRA", name, dtype, values) | {"choice": about}


def peft_row(
    measured: Measured, settings: Any, config: LayerConfig, method: str, name: str, dtype: str, values: str
) -> dict[str, Any]:
    """One case of PEFT's, on the layer, input and support tensors of `measured`."""
    import peft

    given = {tensor: measured.support.factors(tensor, config) for tensor in TENSORS}
    about = {"method": method, "layer": name, "dtype": dtype, "values": values}
    layer = copy.deepcopy(measured.layer)
    before = layer.weight.detach().clone()
    host = nn.Module()
    host.layer = layer  # type: ignore[assignment]
    model = peft.get_peft_model(host, settings)
    inner: Any = model.base_model.model.layer
    put_lora(inner, given["B"], layer) if method == "LoRA" else put_glora(inner, given)
    weight, bias = effective(measured.support, measured.w0, measured.b0, config)
    model.merge_adapter()
    with torch.no_grad():
        found = errors(measured, weight, bias, layer(measured.x))
    model.unmerge_adapter()
    drift = (layer.weight.double() - before.double()).abs()
    size = before.double().abs()
    row: dict[str, Any] = {key: float(f"{value:.4g}") if np.isfinite(value) else None for key, value in found.items()}
    finite = bool(drift.isfinite().all())
    row["drift"] = float(f"{float(drift.norm() / size.norm()):.4g}") if finite else None
    row["moved"] = float(f"{float((drift != 0).double().mean()):.4g}")
    attach.attach(measured.layer, measured.support)
    ours = measured.case(config)
    assert ours is not None or values == "extreme"
    row["glora"] = None if ours is None else float(f"{ours['error']:.4g}")
    return about | row


def put_lora(inner: Any, factors: tuple[Tensor | None, Tensor | None], layer: nn.Module) -> None:
    """Gives PEFT's LoRA the factors of B."""
    down, up = factors
    assert down is not None and up is not None
    with torch.no_grad():
        if isinstance(layer, nn.Embedding):
            inner.lora_embedding_A["default"].copy_(down.T)
            inner.lora_embedding_B["default"].copy_(up.T)
            return
        for part, value in ((inner.lora_A["default"].weight, up), (inner.lora_B["default"].weight, down)):
            part.copy_(value.reshape(part.shape))


def put_glora(inner: Any, given: Mapping[str, tuple[Tensor | None, Tensor | None]]) -> None:
    """Gives PEFT's GLoRA the support tensors."""
    with torch.no_grad():
        for tensor, (down, up) in given.items():
            path = getattr(inner, f"glora_{tensor}")["default"]
            if down is not None and up is not None:
                path.Xd.copy_(down)
                path.Xu.copy_(up)
            elif down is not None:
                path.X.copy_(down.reshape(path.X.shape))


# Files


def write(name: str, found: Sequence[Mapping[str, Any]]) -> None:
    """One file of rows, stamped."""
    fields: dict[str, Any] = {"config": {}, "parameters": 0, "seed": 0, "device": device_name(torch.device("cpu"))}
    made = Result.stamped(method="merge", task="errors", model=name, **fields)
    stamp = {"versions": made.versions, "commit": made.commit, "device": made.device, "time": made.time}
    slug = re.sub(r"\W+", "-", name.lower()).strip("-")
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_json(
        FOLDER / f"{slug}.json",
        {"format": 1, "name": name, "place": [*SUBJECTS, "peft"].index(name), **stamp, "rows": list(found)},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="+", choices=[*SUBJECTS, "peft"], default=[*SUBJECTS, "peft"])
    parser.add_argument("--table", action="store_true", help="write the page of the committed results, measure nothing")
    options = parser.parse_args()
    if not options.table:
        torch.set_num_threads(1)
        for name in options.layers:
            write(name, list(peft_rows() if name == "peft" else rows(name, SUBJECTS[name])))
            print(f"{name} is measured.")
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
