"""HF's Trainer and TRL's train a supernet by the callback: what plays, what is saved, what is resumed and refused."""

from __future__ import annotations

import copy
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors import safe_open
from torch import Tensor, nn

import glora
from glora.errors import AdapterFileError, ConfigError, StateError

transformers = pytest.importorskip("transformers")
from glora.integrations import TrainerCallback  # noqa: E402

ROOT = Path(__file__).parents[1]
VOCABULARY = 40
Row = dict[str, Any]


def llama(seed: int = 0, *, dropout: float = 0.1) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, initializer_range=0.2, attention_dropout=dropout,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.LlamaForCausalLM(config)


def rows(n: int = 22) -> list[Row]:
    drawn = torch.randint(VOCABULARY, (n, 6), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in drawn]


class Recorder(transformers.TrainerCallback):
    """What plays at the end of every forward pass, in training and in evaluation."""

    def __init__(self, adapted: glora.Adapted) -> None:
        self.adapted = adapted
        self.trained: list[Any] = []
        self.evaluated: list[Any] = []
        adapted.model.register_forward_hook(self.note)

    def note(self, model: nn.Module, args: Any, output: Any) -> None:
        (self.trained if model.training else self.evaluated).append(self.adapted.active)


class Killed(transformers.TrainerCallback):
    """Ends the process's training at a step, as a signal would: by an exception."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def arguments(out: Path, **changes: Any) -> Any:
    given = {
        "output_dir": str(out), "per_device_train_batch_size": 4, "max_steps": 6, "learning_rate": 1e-2,
        "save_steps": 3, "report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_strategy": "no",
        "dataloader_pin_memory": False,
    }  # fmt: skip
    return transformers.TrainingArguments(**{**given, **changes})


class Made:
    """A trainer with its adapted model and callback."""

    def __init__(
        self, out: Path, *others: Any, model: Any = None, sampling: Any = "sample", n: int = 22, **changes: Any
    ) -> None:
        self.model = llama() if model is None else model
        self.adapted = glora.inject(self.model, glora.SearchSpace(ranks=(4, 2)), skip=["lm_head"], head=None)
        supernet = glora.Supernet(self.adapted, sampling=sampling, largest=0.0)
        self.callback = TrainerCallback(supernet, seed=3)
        self.recorder = Recorder(self.adapted)
        self.trainer = transformers.Trainer(
            self.model, arguments(out, **changes), train_dataset=rows(n), eval_dataset=rows(5),
            callbacks=[self.callback, self.recorder, *others],
        )  # fmt: skip

    def numbers(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.adapted.state(whole=True).tensors.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A trainer decides on the precision for the whole process, in accelerate's state and the environment."""
    before = dict(os.environ)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers.utils.logging.disable_progress_bar()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("sampling", ["sample", "batch"])
def test_killed_and_resumed_is_the_uninterrupted_run_bit_for_bit(tmp_path, sampling):
    through = Made(tmp_path / "a", sampling=sampling, gradient_accumulation_steps=2)
    fresh = through.numbers()
    through.trainer.train()

    killed = Made(tmp_path / "b", Killed(4), sampling=sampling, gradient_accumulation_steps=2)
    with pytest.raises(KeyboardInterrupt):
        killed.trainer.train()
    resumed = Made(tmp_path / "b", sampling=sampling, gradient_accumulation_steps=2)
    assert same(resumed.numbers(), fresh)
    resumed.trainer.train(resume_from_checkpoint=True)

    assert same(resumed.numbers(), through.numbers())
    assert not same(resumed.numbers(), fresh)
    assert resumed.recorder.trained == through.recorder.trained[-len(resumed.recorder.trained) :]


def test_a_step_plays_one_draw_and_another_step_another(tmp_path):
    made = Made(tmp_path, sampling="batch", gradient_accumulation_steps=2)
    made.trainer.train()
    passes = made.recorder.trained
    assert len(passes) == 12
    assert passes[::2] == passes[1::2], "both passes of a step play its genotype"
    assert len(set(passes)) == 6


@pytest.mark.parametrize("last", [2, 1])
def test_every_row_plays_its_own_and_a_short_last_batch_those_of_its_rows(tmp_path, last):
    made = Made(tmp_path, n=20 + last, gradient_accumulation_steps=2)  # passes of 4, 4 | 4, 4 | 4, last
    made.trainer.train()
    played = [(plays,) if isinstance(plays, glora.Genotype) else plays for plays in made.recorder.trained]
    assert [len(plays) for plays in played] == [4, 4, 4, 4, 4, last] * 2
    first, second = made.recorder.trained[:2]
    assert first != second, "the rows of a step are one draw, cut into its passes"
    drawn = made.callback.supernet.drawn(random.Random("3-0"), 8, 0.0)
    assert [*first, *second] == drawn


def test_evaluations_and_checkpoints_play_the_largest_and_training_goes_on_with_its_own(tmp_path):
    made = Made(tmp_path, model=llama(dropout=0.0), eval_strategy="steps", eval_steps=2)
    made.trainer.train()
    assert made.recorder.evaluated
    assert set(made.recorder.evaluated) == {made.adapted.space.largest}
    assert not any(made.adapted.space.largest in plays for plays in made.recorder.trained)
    header = read_header(tmp_path / "checkpoint-3" / "adapter.safetensors")
    assert header["genotype"] == made.adapted.space.largest.to_json()

    plain = Made(tmp_path / "plain", model=llama(dropout=0.0))
    plain.trainer.train()
    assert same(plain.numbers(), made.numbers()), "evaluating changes nothing of the training"

    other = made.adapted.sample(random.Random(0))
    made.adapted.activate(other)
    made.recorder.evaluated.clear()
    made.trainer.evaluate()
    assert set(made.recorder.evaluated) == {other}, "after the training the caller's genotype plays"


def read_header(path: Path) -> dict[str, Any]:
    from glora.adapt.adapter_file import read_header as read

    return read(path)


def test_a_checkpoint_has_no_parametrized_weights_and_never_loads_as_a_model(tmp_path):
    made = Made(tmp_path)
    made.trainer.train()
    made.trainer.save_model(str(tmp_path / "saved"))
    made.model.save_pretrained(tmp_path / "direct")
    for folder in (tmp_path / "checkpoint-6", tmp_path / "saved", tmp_path / "direct"):
        for file in folder.glob("*.safetensors"):
            with safe_open(file, framework="pt") as opened:
                assert not [name for name in opened.keys() if "parametrizations" in name]
        assert not (folder / "config.json").exists()
        with pytest.raises((OSError, ValueError)):
            transformers.AutoModelForCausalLM.from_pretrained(folder)
        config = transformers.LlamaConfig(**made.model.config.to_diff_dict())
        config._name_or_path = "somewhere"
        with pytest.raises(RuntimeError, match="mismatch"):
            transformers.AutoModelForCausalLM.from_pretrained(folder, config=config)

        loaded = glora.load_adapter(llama(), folder / "model.safetensors")
        assert same(loaded.state(whole=True).tensors, made.numbers())
        adapter = glora.load_adapter(llama(), folder / "adapter.safetensors")
        assert adapter.active == made.adapted.space.largest


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path):
    made = Made(
        tmp_path, eval_strategy="steps", eval_steps=3, load_best_model_at_end=True, learning_rate=0.5, max_steps=9
    )
    made.trainer.train()
    best = Path(made.trainer.state.best_model_checkpoint)
    assert best.name != "checkpoint-9", "at this learning rate it gets worse"
    assert same(glora.load_adapter(llama(), best / "model.safetensors").state(whole=True).tensors, made.numbers())


def test_a_checkpoint_of_another_base_or_space_is_refused(tmp_path):
    Made(tmp_path).trainer.train()
    with pytest.raises(AdapterFileError, match="another base"):
        Made(tmp_path, model=llama(seed=1)).trainer.train(resume_from_checkpoint=True)

    model = llama()
    adapted = glora.inject(model, glora.SearchSpace(ranks=(2,)), skip=["lm_head"], head=None)
    trainer = transformers.Trainer(
        model, arguments(tmp_path), train_dataset=rows(), callbacks=[TrainerCallback(adapted)]
    )
    with pytest.raises(AdapterFileError, match="shape"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_checkpoint_that_was_written_without_the_callback_is_refused(tmp_path):
    model = llama()
    glora.inject(model, glora.SearchSpace(ranks=(4, 2)), skip=["lm_head"], head=None)
    transformers.Trainer(model, arguments(tmp_path), train_dataset=rows()).train()
    with pytest.raises(StateError, match="without this callback"):
        Made(tmp_path).trainer.train(resume_from_checkpoint=True)


def logits(model: Any) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(torch.stack([row["input_ids"] for row in rows(4)])).logits


@pytest.mark.parametrize("precision", ["float", "bfloat16", "checkpointing"])
def test_the_winner_merges_into_a_plain_model_that_from_pretrained_loads(tmp_path, precision):
    changes = {"float": {}, "bfloat16": {"bf16": True}, "checkpointing": {"activation_checkpointing": True}}[precision]
    before = set(llama().__dict__)
    made = Made(tmp_path / "run", **changes)
    made.recorder.evaluated.clear()
    made.trainer.train()
    best = made.adapted.sample(random.Random(0))
    made.adapted.activate(best)
    with pytest.raises(StateError, match="still adapted"):
        made.callback.release()
    if precision == "bfloat16":
        with torch.autocast("cpu", enabled=False):
            del made.model.__dict__["forward"]  # which would compute in bfloat16
            wanted = logits(made.model)
    else:
        wanted = logits(made.model)
    assert not torch.allclose(wanted, logits(llama()), atol=1e-2), "it has learned"

    made.adapted.merge()
    made.model.save_pretrained(tmp_path / "merged")
    made.callback.release()
    left = set(made.model.__dict__) - before
    assert left <= {"_require_grads_hook", "_require_grads_hooks"}, "of checkpointed activations, which are still on"
    assert torch.allclose(logits(made.model), wanted, atol=1e-4)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(loaded), logits(made.model))
    assert torch.equal(logits(copy.deepcopy(made.model)), logits(made.model))


def test_activations_that_are_computed_again_change_nothing(tmp_path):
    plain = Made(tmp_path / "a", model=llama(dropout=0.0))
    again = Made(tmp_path / "b", model=llama(dropout=0.0), activation_checkpointing=True)
    plain.trainer.train()
    again.trainer.train()
    for name, value in plain.numbers().items():
        assert torch.allclose(again.numbers()[name], value, atol=1e-5), name


def test_the_optimizer_owns_the_support_tensors_and_nothing_else(tmp_path):
    made = Made(tmp_path, max_steps=1)
    before = {name: value.clone() for name, value in llama().state_dict().items()}
    made.trainer.train()
    owned = {id(each) for group in made.trainer.optimizer.param_groups for each in group["params"]}
    assert owned == {id(each) for each in made.adapted.parameters()}
    after = made.adapted.detach().state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())

    freed = Made(tmp_path / "freed")
    freed.model.model.norm.weight.requires_grad_(True)
    with pytest.raises(ConfigError, match="owns 1 tensors"):
        freed.trainer.train()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"bf16_full_eval": True}, "half precision"),
        (
            {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
            "use_reentrant",
        ),
    ],
)
def test_arguments_that_do_not_go_with_it_are_refused(tmp_path, change, match):
    with pytest.raises(ConfigError, match=match):
        Made(tmp_path, **change)


def test_another_model_is_refused(tmp_path):
    adapted = glora.inject(llama(), glora.SearchSpace(ranks=(2,)), head=None)
    with pytest.raises(ConfigError, match="another model"):
        transformers.Trainer(llama(), arguments(tmp_path), callbacks=[TrainerCallback(adapted)])
    with pytest.raises(ConfigError, match="no model of transformers"):
        TrainerCallback(glora.inject(nn.Linear(4, 4), glora.SearchSpace(ranks=(2,)), head=None))
    with pytest.raises(ConfigError, match="supernet="):
        TrainerCallback(llama())


def test_rows_in_one_are_refused_where_each_plays_its_own(tmp_path):
    flat = transformers.DataCollatorWithFlattening()
    made = Made(tmp_path)
    made.trainer.data_collator = flat
    with pytest.raises(ConfigError, match="DataCollatorWithFlattening"):
        made.trainer.train()


# TRL, whose own settings have names that transformers warns of

OF_TRL = pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")


def sft(out: Path, sampling: Any = "sample", **changes: Any) -> tuple[glora.Adapted, TrainerCallback, Any]:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        from tiny import sums, tiny_model
    finally:
        sys.path.remove(str(ROOT / "examples"))
    model, tokenizer = tiny_model()
    adapted = glora.inject(model, glora.SearchSpace(ranks=(4, 2)), skip=["lm_head"], head=None)
    callback = TrainerCallback(glora.Supernet(adapted, sampling=sampling))
    given = {
        "output_dir": str(out), "per_device_train_batch_size": 4, "max_steps": 4, "learning_rate": 1e-2,
        "save_steps": 2, "report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_strategy": "no",
        "dataloader_pin_memory": False,
    }  # fmt: skip
    args = trl.SFTConfig(**{**given, **changes})
    data = datasets.Dataset.from_list(sums()[0])
    return (
        adapted,
        callback,
        trl.SFTTrainer(model, args, train_dataset=data, processing_class=tokenizer, callbacks=[callback]),
    )


@OF_TRL
@pytest.mark.parametrize("packed", ["packing", "padding_free"])
def test_packing_is_refused_with_genotypes_per_row_and_goes_with_one_a_step(tmp_path, packed):
    options = {
        packed: True,
        "max_length": 32 if packed == "packing" else None,
        **({"packing_strategy": "wrapped"} if packed == "packing" else {}),
    }
    with pytest.raises(ConfigError, match=f"{packed}=True"):
        sft(tmp_path, **options)
    if packed == "packing":
        adapted, _, trainer = sft(tmp_path, sampling="batch", **options)
        before = {name: value.clone() for name, value in adapted.state(whole=True).tensors.items()}
        trainer.train()
        assert not same(before, adapted.state(whole=True).tensors)


@OF_TRL
def test_trl_resumes_bit_for_bit_and_its_merged_model_is_plain(tmp_path):
    adapted, callback, trainer = sft(tmp_path)
    trainer.train()
    again, _, other = sft(tmp_path)
    other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(adapted.state(whole=True).tensors, again.state(whole=True).tensors)

    model = adapted.model
    adapted.activate(adapted.sample(random.Random(1)))
    played = {name: layer.weight.detach().clone() for name, layer in model.named_modules() if name in adapted.sites}
    adapted.merge()
    callback.release()
    assert "forward" not in model.__dict__
    assert "save_pretrained" not in model.__dict__
    for name, value in played.items():  # what is read is computed in float32, what is merged in float64
        assert torch.allclose(model.get_submodule(name).weight, value, rtol=1e-5, atol=1e-7)


# The examples


def run(example: str, *options: str, processes: int = 0) -> str:
    here = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes else []
    command = [sys.executable, *start, str(ROOT / "examples" / example), *options]
    done = subprocess.run(command, env=here, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_example_of_the_trainer_merges_the_winner_that_it_scored(tmp_path):
    told = run("hf_trainer.py", "--out", str(tmp_path), "--steps", "12")
    scored, merged = (line.rsplit(maxsplit=1)[1] for line in told.strip().splitlines()[-1].split(", "))
    assert abs(float(scored) - float(merged)) <= 1e-4
    assert (tmp_path / "checkpoint-12" / "model.safetensors").is_file()
    assert glora.load_adapter(example_model(), tmp_path / "winner.safetensors").sites


def example_model() -> Any:
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        from tiny import tiny_model
    finally:
        sys.path.remove(str(ROOT / "examples"))
    return tiny_model()[0]


@pytest.mark.slow
def test_the_example_of_trl_writes_a_merged_folder(tmp_path):
    pytest.importorskip("trl")
    run("trl_sft.py", "--out", str(tmp_path), "--steps", "4")
    assert (tmp_path / "merged" / "config.json").is_file()


@pytest.mark.slow
def test_two_processes_train_the_same_supernet_as_one(tmp_path):
    run("hf_trainer.py", "--out", str(tmp_path / "two"), "--steps", "6", "--batch", "4", processes=2)
    run("hf_trainer.py", "--out", str(tmp_path / "one"), "--steps", "6", "--batch", "8")
    one, two = (
        glora.load_adapter(example_model(), tmp_path / name / "checkpoint-6" / "model.safetensors").state(whole=True)
        for name in ("one", "two")
    )
    for name, value in one.tensors.items():
        assert torch.allclose(two.tensors[name], value, atol=1e-3), name


def test_any_number_of_loader_workers_trains_the_same(tmp_path):
    found = []
    for workers in (0, 2):
        made = Made(tmp_path / str(workers), dataloader_num_workers=workers)
        made.trainer.train()
        found.append((made.numbers(), made.recorder.trained))
    (one, played), (other, again) = found
    assert same(one, other)
    assert played == again
