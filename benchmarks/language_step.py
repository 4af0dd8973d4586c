"""What a training step on texts costs: tokens per second and memory of GLoRA, LoRA and PEFT's LoRA on one batch.

    python benchmarks/language_step.py                           # SmolLM2-135M; writes results/language-step/*.json
    python benchmarks/language_step.py --rows 8 --tokens 128 --learned 32
    python benchmarks/language_step.py --device cuda --dtype bf16
    python benchmarks/language_step.py --model path/to/folder    # any causal model of transformers
    python benchmarks/language_step.py --table                   # the Results as a Markdown table

Steps, rounds and the frozen floor are those of `step.py`; what differs is the batch and its loss. All methods read the
same conversations, of whose tokens the last ones of each row are learned, by the objective `language`: logits are
computed at these positions alone. `peft-lora-full` is the same LoRA with the loss that transformers' models compute
themselves, of the logits of all positions.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import step
import torch
from step import DTYPES, RANK, Runner, Subject
from torch import Tensor, nn

from glora.backbones import load_backbone
from glora.report.result import Result
from glora.tasks.likelihood import token_losses
from glora.tasks.texts import IGNORED
from glora.training.device import device_name

FOLDER = Path(__file__).parent.parent / "results" / "language-step"
TARGETS = "linear"


class Learned(nn.Module):
    """A causal model whose output is the mean loss of the learned tokens.

    Args:
        model: The model.
        full: Whether the logits of all positions are computed, and transformers' own loss of them.
    """

    def __init__(self, model: nn.Module, *, full: bool = False) -> None:
        super().__init__()
        self.model, self.full = model, full

    def get_output_embeddings(self) -> nn.Module:
        """The model's output layer, which is no target."""
        return self.model.get_output_embeddings()  # type: ignore[operator,no-any-return]

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.full:
            found: Tensor = self.model(**inputs, labels=targets, use_cache=False).loss
            return found
        return token_losses(self.model, inputs, targets).losses.mean()


def subject_of(options: argparse.Namespace) -> Subject:
    """The model, and rows of random tokens, of which the last ones are learned."""
    model = load_backbone(options.model, num_classes=None).model
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (options.rows, options.tokens), generator=generator)  # type: ignore[union-attr,arg-type]
    targets = ids.clone()
    targets[:, : options.tokens - options.learned] = IGNORED
    blocks = next(name for name, each in model.named_modules() if isinstance(each, nn.ModuleList))
    subject = Subject(Learned(model), f"model.{blocks}.0", (ids, targets), lambda loss: loss)
    return subject.to(options.device, DTYPES[options.dtype])


def full_logits(subject: Subject, targets: str) -> Runner:
    """PEFT's LoRA with transformers' own loss."""
    runner = step.peft("lora")(subject, targets)
    runner.subject.model.full = True  # type: ignore[assignment]
    return runner


METHODS: Mapping[str, Callable[[Subject, str], Runner]] = {
    "frozen": step.frozen,
    "peft-lora": step.peft("lora"),
    "peft-lora-full": full_logits,
    "lora": step.lora_b,
    "glora-batch": step.supernet("matrix", largest=0.25),
    "glora-sample": step.supernet("matrix", sampling="sample", largest=0.25),
}


def write(method: str, options: argparse.Namespace, runner: Runner, metrics: dict[str, float]) -> None:
    """Writes one Result."""
    settings = ("rows", "tokens", "learned", "dtype", "rounds", "clock")
    model = Path(options.model).name
    result = Result.stamped(
        method=method,
        task="language-step",
        model=model,
        seed=0,
        config={name: getattr(options, name) for name in settings}
        | {"rank": RANK, "targets": TARGETS, "threads": torch.get_num_threads()},
        device=device_name(torch.device(options.device)),
        parameters=step.numel(runner.parameters),
        metrics=metrics,
    )
    result = replace(result, memory_bytes=peak(method, options) if options.memory else None)
    result.write(options.out / f"{model}-{method}-{options.device}-{options.dtype}.json")
    print(method, {name: round(value, 4) for name, value in metrics.items()}, file=sys.stderr)


def peak(method: str, options: argparse.Namespace) -> int:
    """Peak memory in bytes of a process that does nothing but load the model and take this method's steps."""
    command = [sys.executable, __file__, "--peak", method, "--threads", str(torch.get_num_threads())]
    for name in ("model", "rows", "tokens", "learned", "device", "dtype"):
        command += [f"--{name}", str(getattr(options, name))]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure(options: argparse.Namespace) -> None:
    """Every method's steps, interleaved; a Result each."""
    subject = subject_of(options)
    runners = {method: METHODS[method](subject, TARGETS) for method in options.methods}
    kept = {method: step.saved_bytes(runner) for method, runner in runners.items()}
    times = step.rounds_of(runners, options)
    tokens = options.rows * options.tokens
    for method, runner in runners.items():
        ratios = [mine[0] / floor[0] for mine, floor in zip(times[method], times["frozen"], strict=True)]
        speeds = [tokens / (forth + update) for forth, update in times[method]]
        metrics = step.spread("ratio", ratios) | step.spread("tokens_per_second", speeds)
        write(method, options, runner, metrics | {"saved_bytes": kept[method]})


def table(results: list[Result]) -> str:
    """The Results as Markdown."""
    lines = [
        "| model | rows x tokens (learned) | method | trainable | tokens/s (quartiles) | step over the floor's "
        "| saved, MB | peak, MB | device |",
        "|---|---|---|---:|---:|---:|---:|---:|---|",
    ]
    order = list(METHODS)
    for r in sorted(results, key=lambda r: (r.model, r.device, order.index(r.method))):
        m = {name: float(value) for name, value in r.metrics.items() if value is not None}
        speed = "{tokens_per_second:.0f} ({tokens_per_second_low:.0f} to {tokens_per_second_high:.0f})".format(**m)
        batch = f"{r.config['rows']} x {r.config['tokens']} ({r.config['learned']})"
        memory = f"{r.memory_bytes / 1e6:.0f}" if r.memory_bytes else ""
        lines.append(
            f"| {r.model} | {batch} | {r.method} | {r.parameters:,} | {speed} | {m['ratio']:.3f} "
            f"| {m['saved_bytes'] / 1e6:.1f} | {memory} | {r.device}, {r.config['dtype']} |"
        )
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2_135m", help="a packaged model or a folder of transformers")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="frozen always runs")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256, help="of a row")
    parser.add_argument("--learned", type=int, default=64, help="tokens of a row that are learned, its last ones")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, help="torch's threads")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the model")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: of the process, all threads")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="no processes for peak memory")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where the Results are written")
    parser.add_argument("--peak", choices=METHODS, help="print the peak memory of this process in bytes")
    parser.add_argument("--table", action="store_true", help="print the Results as Markdown and stop")
    options = parser.parse_args()
    options.methods = list(dict.fromkeys(["frozen", *options.methods]))
    if not 0 < options.learned < options.tokens:
        parser.error(f"--learned {options.learned} has to be less than --tokens {options.tokens}")
    return options


def main() -> None:
    options = parsed()
    if options.table:
        print(table(Result.read_all(sorted(options.out.glob("*.json")))))
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.peak:
        step.print_peak(METHODS[options.peak](subject_of(options), TARGETS), options)
        return
    measure(options)


if __name__ == "__main__":
    main()
