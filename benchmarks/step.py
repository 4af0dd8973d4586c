"""What adapting costs: one training step of every method over the frozen model's, measured in one run, interleaved.

    python benchmarks/step.py                              # every model; writes results/step/*.json
    python benchmarks/step.py --models vit_s14 --rounds 30
    python benchmarks/step.py --device cuda --dtype bf16 --compile
    python benchmarks/step.py --profile supernet-matrix    # where the time of that method's step goes
    python benchmarks/step.py --no-memory; python benchmarks/step.py --peaks    # first the times, then the memory
    python benchmarks/step.py --table                      # the Results as a Markdown table

The frozen floor is forward, and backward of the activations alone: all weights frozen, a gradient wanted at the first
block's input. A step is drawing the genotype, forward, loss and backward; the optimizer's update is timed apart. A
ratio is the median over the rounds of a method's time over the floor's in the same round; every round has its own
order. Peak memory is of a process of its own. LoRA and GLoRA are Hugging Face PEFT's on the same sites, rank 8.
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from glora import Adapted, LayerConfig, SearchSpace, Supernet, inject
from glora.adapt.sites import plan_sites
from glora.backbones import load_backbone
from glora.report.result import Result
from glora.runs.latency import latency_ratio
from glora.tasks.objective import Batch
from glora.tasks.objectives.classify import Classify
from glora.training.device import device_name

FOLDER = Path(__file__).parent.parent / "results" / "step"
RANK = 8
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class Subject:
    """A model to adapt, one batch of it, and its loss."""

    model: nn.Module
    first: str  # the module at whose input the floor wants a gradient
    inputs: tuple[Tensor, ...]
    loss: Callable[[Any], Tensor]

    def to(self, device: str, dtype: torch.dtype) -> Subject:
        inputs = tuple(x.to(device, dtype) if x.is_floating_point() else x.to(device) for x in self.inputs)
        return replace(self, model=self.model.to(device, dtype), inputs=inputs)


def images(model: nn.Module, first: str, side: int) -> Subject:
    labels = torch.arange(32) % 10
    return Subject(
        model,
        first,
        (torch.randn(32, 3, side, side),),
        lambda out: F.cross_entropy(out.float(), labels.to(out.device)),
    )


def vit_s14() -> Subject:
    """The packaged DINOv2 ViT-S/14, 32 images of 98 pixels."""
    return images(load_backbone("dinov2_vits14", num_classes=10).model, "blocks.0", 98)


def convnext_t() -> Subject:
    """timm's ConvNeXt-T with random weights, 32 images of 96 pixels."""
    import timm

    return images(timm.create_model("convnext_tiny", num_classes=10), "stages.0", 96)


def smollm2_135m() -> Subject:
    """A Llama of SmolLM2-135M's shape with random weights, 4 sequences of 256 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        use_cache=False,
    )
    tokens = torch.randint(49152, (4, 256))

    def loss(out: Any) -> Tensor:
        return F.cross_entropy(out.logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten().to(out.logits.device))

    return Subject(LlamaForCausalLM(config), "model.layers.0", (tokens,), loss)


MODELS: dict[str, Callable[[], Subject]] = {
    "vit_s14": vit_s14,
    "smollm2_135m": smollm2_135m,
    "convnext_t": convnext_t,
}


@dataclass
class Runner:
    """One method on its own copy of the model; frozen weights are shared by the copies."""

    subject: Subject
    parameters: list[nn.Parameter]
    draw: Callable[[], Any] | None = None  # the next step's genotype

    def step(self) -> None:
        if self.draw:
            self.draw()
        self.subject.loss(self.subject.model(*self.subject.inputs)).backward()

    def compiled(self) -> Runner:
        return replace(self, subject=replace(self.subject, model=torch.compile(self.subject.model)))


def own(subject: Subject, *, share: bool = True) -> Subject:
    """A copy of the subject; the parameters are the same objects where shared."""
    kept: dict[int, Any] = {id(p): p for p in subject.model.parameters()} if share else {}
    return replace(subject, model=copy.deepcopy(subject.model, kept))


def frozen(subject: Subject, targets: str) -> Runner:
    mine = own(subject)
    mine.model.requires_grad_(False)

    def want(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0].requires_grad_(), *args[1:])

    mine.model.get_submodule(mine.first).register_forward_pre_hook(want)
    return Runner(mine, [])


def full(subject: Subject, targets: str) -> Runner:
    mine = own(subject, share=False)
    mine.model.requires_grad_(True)
    return Runner(mine, list(mine.model.parameters()))


def peft(kind: str) -> Callable[[Subject, str], Runner]:
    def build(subject: Subject, targets: str) -> Runner:
        import peft

        mine = own(subject)
        mine.model.requires_grad_(False)
        names = sites_of(mine.model, targets)
        configs = {"lora": peft.LoraConfig, "glora": peft.GloraConfig}
        model = peft.inject_adapter_in_model(configs[kind](r=RANK, target_modules=names), mine.model)
        return Runner(replace(mine, model=model), [p for p in model.parameters() if p.requires_grad])

    return build


def supernet(
    product: str, *, sampling: Literal["sample", "batch"] = "batch", largest: float = 0.0
) -> Callable[[Subject, str], Runner]:
    """The supernet, by default with one genotype per step."""

    def build(subject: Subject, targets: str) -> Runner:
        mine, size = own(subject), len(subject.inputs[0])
        space = SearchSpace(ranks=(RANK,), product=product)  # type: ignore[arg-type]
        adapted = adapted_by(mine.model, space, targets)
        net, rng = Supernet(adapted, sampling=sampling, largest=largest), random.Random(0)
        return Runner(mine, adapted.parameters(), lambda: net.sample(rng, range(size), size, 0.0))

    return build


def searched(subject: Subject, targets: str) -> Runner:
    """One genotype of the default space, of every kind of choice; it stays."""
    runner = supernet("elementwise")(subject, targets)
    assert runner.draw is not None
    runner.draw()
    return replace(runner, draw=None)


def lora_b(subject: Subject, targets: str) -> Runner:
    mine = own(subject)
    space = SearchSpace(only=LayerConfig(B=f"lora:{RANK}"))
    adapted = adapted_by(mine.model, space, targets)
    return Runner(mine, adapted.parameters())


METHODS: dict[str, Callable[[Subject, str], Runner]] = {
    "frozen": frozen,
    "full": full,
    "peft-lora": peft("lora"),
    "peft-glora": peft("glora"),
    "lora-b": lora_b,
    "searched": searched,
    "supernet-matrix": supernet("matrix"),
    "supernet-elementwise": supernet("elementwise"),
    "sample-matrix": supernet("matrix", sampling="sample", largest=0.25),
    "sample-elementwise": supernet("elementwise", sampling="sample", largest=0.25),
}


def sites_of(model: nn.Module, targets: str) -> list[str]:
    """The sites outside the head; the head stays frozen, for PEFT as for us."""
    return list(plan_sites(model, targets=targets, skip=(), head="auto", new_bias=False, example=None)[0])


def adapted_by(model: nn.Module, space: SearchSpace, targets: str) -> Adapted:
    return inject(model, space, targets=sites_of(model, targets), head=None)


def clock(options: argparse.Namespace) -> float:
    if options.device != "cpu":
        torch.cuda.synchronize()
    return time.process_time() if options.clock == "cpu" else time.perf_counter()


def rounds_of(runners: dict[str, Runner], options: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """Step and update seconds of every method, one pair per round."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runners}
    optimizers = {n: torch.optim.AdamW(r.parameters, fused=True) for n, r in runners.items() if r.parameters}
    rng = random.Random(0)
    for k in range(-2, options.rounds):
        for name in rng.sample(list(runners), len(runners)):
            start = clock(options)
            runners[name].step()
            middle = clock(options)
            if name in optimizers:
                optimizers[name].step()
                optimizers[name].zero_grad()
            if k >= 0:
                found[name].append((middle - start, clock(options) - middle))
    return found


def saved_bytes(runner: Runner) -> float:
    """Bytes that a step's forward keeps for backward, every storage once, without parameters; a mean over steps."""
    steps = 16 if runner.draw else 1
    skipped = {p.untyped_storage().data_ptr() for p in (*runner.subject.model.parameters(), *runner.parameters)}
    sizes = []
    for _ in range(steps):
        kept: dict[int, Tensor] = {}

        def pack(tensor: Tensor, kept: dict[int, Tensor] = kept) -> Tensor:
            alone = tensor.detach()  # with its graph neither would ever be freed
            kept.setdefault(alone.untyped_storage().data_ptr(), alone)
            return alone

        if runner.draw:
            runner.draw()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            runner.subject.loss(runner.subject.model(*runner.subject.inputs))
        sizes.append(sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in skipped))
    return statistics.fmean(sizes)


def spread(name: str, values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {name: middle, f"{name}_low": low, f"{name}_high": high}


def stamped(name: str, method: str, options: argparse.Namespace, **given: Any) -> None:
    """Writes one Result."""
    device = torch.device(options.device)
    config = {k: v for k, v in vars(options).items() if k in ("clock", "compile", "dtype", "rounds", "targets")}
    result = Result.stamped(
        method=method,
        task="step",
        model=name,
        seed=0,
        config={**config, "rank": RANK, "threads": torch.get_num_threads()},
        device=device_name(device),
        parameters=given["parameters"],
        metrics=given["metrics"],
    )
    kind = (
        ""
        if options.device == "cpu" and options.dtype == "fp32" and not options.compile
        else "-" + "-".join([options.device, options.dtype, *(["compile"] if options.compile else [])])
    )
    path = FOLDER / f"{name}-{method}{kind}.json"
    replace(result, memory_bytes=given.get("memory_bytes")).write(path)
    print(path.stem, {k: round(v, 4) for k, v in given["metrics"].items()}, file=sys.stderr)


def peak(name: str, method: str, options: argparse.Namespace) -> int:
    """Peak memory in bytes of a process that does nothing but this method's steps."""
    command = [sys.executable, __file__, "--models", name, "--peak", method, "--targets", options.targets]
    command += ["--device", options.device, "--dtype", options.dtype, "--threads", str(torch.get_num_threads())]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def fill_peaks(options: argparse.Namespace) -> None:
    """Measures the peak memory that this machine's Results lack."""
    for path in sorted(FOLDER.glob("*.json")):
        result = Result.read(path)
        asked = result.model in options.models and result.method in METHODS
        if asked and result.memory_bytes is None and result.config["targets"] == options.targets:
            replace(result, memory_bytes=peak(result.model, result.method, options)).write(path)


def print_peak(runner: Runner, options: argparse.Namespace) -> None:
    import resource

    for _ in range(3):
        runner.step()
    on_gpu = options.device != "cpu"
    print(torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def measure_steps(name: str, subject: Subject, options: argparse.Namespace) -> None:
    runners = {method: METHODS[method](subject, options.targets) for method in options.methods}
    kept = {} if options.compile else {method: saved_bytes(runner) for method, runner in runners.items()}
    if options.compile:
        runners = {method: runner.compiled() for method, runner in runners.items()}
    times = rounds_of(runners, options)
    for method, runner in runners.items():
        ratios = [mine[0] / floor[0] for mine, floor in zip(times[method], times["frozen"], strict=True)]
        metrics = spread("ratio", ratios) | spread("step_seconds", [step for step, _ in times[method]])
        metrics |= {"update_seconds": statistics.median(update for _, update in times[method])}
        metrics |= {"saved_bytes": kept[method]} if kept else {}
        memory = peak(name, method, options) if options.memory else None
        count = sum(p.numel() for p in runner.parameters)
        stamped(name, method, options, parameters=count, metrics=metrics, memory_bytes=memory)


def flops(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops()


def measure_forward(name: str, subject: Subject, options: argparse.Namespace) -> None:
    """A held candidate's and the merged model's forward over the plain one's."""
    plain, mine = own(subject), own(subject)
    space = SearchSpace(ranks=(RANK,))
    adapted = adapted_by(mine.model, space, options.targets)
    genotype = adapted.sample(random.Random(0))

    def pairs(model: nn.Module, metric: str) -> dict[str, float]:
        batch = Batch(subject.inputs, None)
        device = torch.device(options.device)
        found = latency_ratio(model, plain.model, batch, Classify(), device, rounds=options.rounds, seconds=1e9)
        return {metric + key.removeprefix("ratio"): found[key] for key in ("ratio", "ratio_low", "ratio_high")}

    with adapted.hold(genotype) as held:
        metrics = pairs(held, "held_ratio")
    adapted.activate(genotype)
    merged = adapted.merge()
    metrics |= pairs(merged, "merged_ratio")
    metrics["merged_parameters_ratio"] = numel(merged.parameters()) / numel(plain.model.parameters())
    metrics["merged_flops_ratio"] = flops(merged, subject.inputs) / flops(plain.model, subject.inputs)
    metrics["merged_same_keys"] = float(list(merged.state_dict()) == list(plain.model.state_dict()))
    stamped(name, "forward", options, parameters=adapted.count(genotype), metrics=metrics)


def numel(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def measure_actions(options: argparse.Namespace) -> None:
    """Seconds to inject 48 sites of a ViT-B, activate, merge and switch, beside copying the weights."""
    import tempfile

    import timm

    import glora

    model = timm.create_model("vit_base_patch16_224", num_classes=10).to(options.device, DTYPES[options.dtype])
    seconds: dict[str, list[float]] = {name: [] for name in ("inject", "activate", "copy", "merge", "switch")}
    space, rng = SearchSpace(ranks=(RANK,)), random.Random(0)

    def timed(name: str, action: Callable[[], Any]) -> Any:
        start = clock(options)
        done = action()
        seconds[name].append(clock(options) - start)
        return done

    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            adapted = timed("inject", lambda: inject(model, space))
            genotype = adapted.sample(rng)
            timed("activate", lambda adapted=adapted, genotype=genotype: adapted.activate(genotype))
            glora.save_adapter(adapted, Path(folder) / "b.safetensors")
            adapted.add("b", Path(folder) / "b.safetensors")
            timed("switch", lambda adapted=adapted: adapted.switch("b"))
            weights = [value for key, value in model.state_dict().items() if key.endswith("original")]
            timed("copy", lambda weights=weights: [value.clone() for value in weights])
            timed("merge", adapted.merge)
            adapted.detach()
    metrics = {f"{key}_seconds": value for name, times in seconds.items() for key, value in spread(name, times).items()}
    ratios = [mine / copied for mine, copied in zip(seconds["merge"], seconds["copy"], strict=True)]
    metrics |= spread("merge_over_copy", ratios)
    adapted = inject(model, space)
    held = sum(numel(support.parameters()) for support in adapted.supports.values())
    metrics["held_over_largest_numbers"] = held / adapted.count(adapted.space.largest)
    stamped("vit_b16", "actions", options, parameters=held, metrics=metrics)


def profile(runner: Runner, rows: int = 25) -> str:
    """The operations of a step that take the most time of their own."""
    for _ in range(2):
        runner.step()
    with torch.profiler.profile() as profiler:
        for _ in range(4):
            runner.step()
    key = "self_cuda_time_total" if runner.subject.inputs[0].is_cuda else "self_cpu_time_total"
    return profiler.key_averages(group_by_input_shape=False).table(
        sort_by=key, row_limit=rows, max_name_column_width=60
    )


def table(results: list[Result]) -> str:
    """The Results as Markdown: a table of steps and one of the other figures."""
    lines = [
        "| model | method | ratio to the floor (quartiles) | step, ms | update, ms | saved, MB | peak, MB | device |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    others = ["| model | what | median | quartiles |", "|---|---|---:|---:|"]
    order = list(METHODS)
    for r in sorted(results, key=lambda r: (r.model, order.index(r.method) if r.method in order else 99)):
        m = {key: float(value) for key, value in r.metrics.items() if value is not None}
        if r.method in order:
            saved = f"{m['saved_bytes'] / 1e6:.1f}" if "saved_bytes" in m else ""
            memory = f"{r.memory_bytes / 1e6:.0f}" if r.memory_bytes else ""
            kind = f"{r.device}, {r.config['dtype']}{', compiled' if r.config['compile'] else ''}"
            lines.append(
                f"| {r.model} | {r.method} | {m['ratio']:.3f} ({m['ratio_low']:.3f} to {m['ratio_high']:.3f}) "
                f"| {1e3 * m['step_seconds']:.1f} | {1e3 * m['update_seconds']:.1f} | {saved} | {memory} | {kind} |"
            )
            continue
        for key in (key for key in m if not key.endswith(("_low", "_high", "_low_seconds", "_high_seconds"))):
            stem, unit = (key.removesuffix("_seconds"), "_seconds") if key.endswith("_seconds") else (key, "")
            low, high = (m.get(f"{stem}_{end}{unit}") for end in ("low", "high"))
            quartiles = "" if low is None or high is None else f"{low:.4g} to {high:.4g}"
            others.append(f"| {r.model} | {key} | {m[key]:.4g} | {quartiles} |")
    return "\n".join([*lines, "", *others])


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=[*MODELS, "vit_b16"], default=[*MODELS, "vit_b16"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="frozen always runs")
    parser.add_argument("--targets", default="linear")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, help="torch's threads")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the model")
    parser.add_argument("--compile", action="store_true", help="torch.compile every model")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: of the process, all threads")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="no processes for peak memory")
    parser.add_argument("--profile", choices=METHODS, help="print where the time of this method's step goes")
    parser.add_argument("--peak", choices=METHODS, help="print the peak memory of this process in bytes")
    parser.add_argument("--peaks", action="store_true", help="add the peak memory that the Results lack, and stop")
    parser.add_argument("--table", action="store_true", help="print the Results as Markdown and stop")
    options = parser.parse_args()
    options.methods = list(dict.fromkeys(["frozen", *options.methods]))
    return options


def main() -> None:
    options = parsed()
    if options.table:
        print(table(Result.read_all(sorted(FOLDER.glob("*.json")))))
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.peaks:
        fill_peaks(options)
        return
    for name in options.models:
        torch.manual_seed(0)
        if name not in MODELS:
            measure_actions(options)
            continue
        subject = MODELS[name]().to(options.device, DTYPES[options.dtype])
        if alone := options.profile or options.peak:
            runner = METHODS[alone](subject, options.targets)
            print(profile(runner)) if options.profile else print_peak(runner, options)
            continue
        measure_steps(name, subject, options)
        measure_forward(name, subject, options)


if __name__ == "__main__":
    main()
