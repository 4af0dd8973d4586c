"""A merged model of transformers as a folder that `from_pretrained` loads, written whole or not at all."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from glora import registry
from glora.errors import BackboneError, RunError, listed
from glora.files import atomic_folder, write_json
from glora.tasks.images import Preprocess

__all__ = ["CARD", "Extras", "folder_of", "is_transformers", "refuse_occupied", "save_folder"]

CARD = "glora.json"  # where the model comes from; by it a folder is known as one of ours
SHARD = "5GB"
_TOKENIZER = (  # files of any tokenizer and processor, and the licence, which goes with the weights
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.tiktoken",
    "tekken.json", "chat_template*", "additional_chat_templates/*", "processor_config.json", "LICENSE*", "NOTICE*",
)  # fmt: skip
_GENERATION = "generation_config.json"
_READING = "preprocessor_config.json"
_RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # PIL's numbers
_MARGIN = 8 / 7  # as `Preprocess` has it


@dataclass(frozen=True)
class Extras:
    """What lies in the folder beside the weights and the configuration.

    Attributes:
        tokenizer: transformers' tokenizer; None where the model reads no texts.
        source: The base's folder, whose tokenizer's files are copied as they are; None: the tokenizer writes its own.
        preprocess: How the model reads images; None where it reads none.
        labels: Names of the outputs, in their order; empty where they have none.
        problem: transformers' `problem_type` of a classifier; empty where it is none.
        card: Plain JSON about where the model comes from.
    """

    tokenizer: Any = None
    source: Path | None = None
    preprocess: Preprocess | None = None
    labels: Sequence[str] = ()
    problem: str = ""
    card: Mapping[str, Any] = field(default_factory=dict)


def is_transformers(model: nn.Module) -> bool:
    """Whether transformers can save the model and build it again from its configuration."""
    return hasattr(model, "save_pretrained") and hasattr(getattr(model, "config", None), "to_dict")


def folder_of(*names: str) -> Path | None:
    """The folder that the first of these names leads to: a path, or a hub's name of what its cache holds; None: none.

    Args:
        names: Paths, or hub names such as `owner/name`; empty ones are none.
    """
    for name in filter(None, names):
        if (Path(name).expanduser() / "config.json").is_file():
            return Path(name).expanduser()
        if name.count("/") == 1 and not name.startswith((".", "/", "~")):
            hub = registry.optional_import("huggingface_hub", extra="text", purpose="A model of a hub")
            found = hub.try_to_load_from_cache(name, "config.json")
            if isinstance(found, str):
                return Path(found).parent
    return None


def refuse_occupied(path: Path) -> None:
    """Raises RunError where something lies at the path that no merge has written."""
    if path.is_dir():
        if not any(path.iterdir()) or (path / CARD).is_file():
            return
        raise RunError(f"The folder {str(path)!r} holds something else.", remedy="Name a folder that is new or empty.")
    if path.exists() or path.is_symlink():
        raise RunError(f"{str(path)!r} is a file.", remedy="Name a folder that is new or empty.")


def save_folder(
    model: Any, path: str | Path, extras: Extras, *, new_keys: Sequence[str] = (), shard: str = SHARD
) -> tuple[str, ...]:
    """Writes a model of transformers as a folder: configuration, weights, tokenizer, generation settings.

    It is checked before it takes its place: transformers finds every weight in it, and every bit is the model's.

    Args:
        model: The plain model; it is left as it is.
        path: The folder. One that a merge has written is replaced, as a whole.
        extras: What lies beside the weights.
        new_keys: Keys that the base has not: a new bias each.
        shard: Most bytes of one file of weights, as transformers reads it: `5GB`.

    Returns:
        What a user should be told.

    Raises:
        BackboneError: The model's class cannot hold the new biases, or transformers cannot write or read it; nothing
            is written then.
        RunError: Something else lies at the path.
    """
    path = Path(path)
    refuse_occupied(path)
    config, notes = _with_biases(model, new_keys)
    _label(config, extras)
    state, zeros = _filled(model, config)
    notes += _zeros_told(zeros)
    with atomic_folder(path) as folder, quiet():
        _write(model, config, state, folder, extras, shard)
        _copy(extras, folder)
        if extras.preprocess is not None:
            write_json(folder / _READING, _image_settings(extras))
        write_json(folder / CARD, extras.card)
        notes += _checked(model, state, folder)
    return notes


# Biases that the base has not.


def _with_biases(model: Any, new_keys: Sequence[str]) -> tuple[Any, tuple[str, ...]]:
    """A copy of the configuration, with the switches on that make the layers of these biases; and which."""
    config, wanted, found = copy.deepcopy(model.config), set(new_keys), []
    if not wanted:
        return config, ()
    own = set(model.state_dict()) - wanted
    for name, value in config.to_dict().items():
        if "bias" not in name or value is not False:
            continue
        added = _keys(model, config, {name: True}) - own
        if added & wanted and all(key.endswith("bias") for key in added):
            found.append(name)
    if missing := wanted - _keys(model, config, dict.fromkeys(found, True)):
        switches = f"; {', '.join(found)} covers the others" if found else ""
        raise BackboneError(
            f"{type(model).__name__} has no place for {len(missing)} of the {len(wanted)} new biases, such as "
            f"{min(missing)}: a plain reload would drop them{switches}.",
            allowed="Without new biases any model can be written as a folder.",
            remedy="Train with --set method.new_bias=false, or write the state dict alone: --out FILE.safetensors.",
        )
    for name in found:
        setattr(config, name, True)
    return config, (f"The configuration has {' and '.join(f'{name}=true' for name in found)} for the new biases.",)


def _keys(model: Any, config: Any, changes: Mapping[str, Any]) -> set[str]:
    changed = copy.deepcopy(config)
    for name, value in changes.items():
        setattr(changed, name, value)
    return set(_shell(model, changed).state_dict())


def _shell(model: Any, config: Any) -> Any:
    """A model of the same class without numbers."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return type(model)(copy.deepcopy(config))


def _filled(model: Any, config: Any) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict that a model of this configuration has; and the biases that are zeros in it, being nobody's.

    Raises:
        BackboneError: The class, built anew, has other keys.
    """
    state, shell = model.state_dict(), _shell(model, config).state_dict()
    zeros = sorted(set(shell) - set(state))
    odd = [*(key for key in zeros if not key.endswith("bias")), *sorted(set(state) - set(shell))]
    odd += [key for key in state if key in shell and state[key].shape != shell[key].shape]
    if odd:
        raise BackboneError(
            f"A {type(model).__name__} of the model's configuration has other weights: {listed(odd)}.",
            allowed="A folder holds a configuration and the weights of the model that it makes.",
            remedy="Write the state dict alone: --out FILE.safetensors.",
        )
    for key in zeros:
        beside = state[key.removesuffix("bias") + "weight"]
        state[key] = torch.zeros(shell[key].shape, dtype=beside.dtype, device=beside.device)
    return state, zeros


def _zeros_told(zeros: Sequence[str]) -> tuple[str, ...]:
    return (f"{len(zeros)} biases that these make beside them are zero.",) if zeros else ()


# Writing.


@contextmanager
def quiet() -> Iterator[None]:
    """Within it transformers logs errors alone and shows no progress: what matters is told as notes."""
    own: Any = registry.optional_import("transformers.utils.logging", extra="text", purpose="A model's folder")
    verbosity, bars = own.get_verbosity(), own.is_progress_bar_enabled()
    own.set_verbosity_error()
    own.disable_progress_bar()
    pytree = logging.getLogger("torch.utils._pytree")  # warns of torchao, which transformers imports where it is there
    level = pytree.level
    pytree.setLevel(logging.ERROR)
    try:
        yield
    finally:
        pytree.setLevel(level)
        own.set_verbosity(verbosity)
        if bars:
            own.enable_progress_bar()


def _write(model: Any, config: Any, state: Mapping[str, Tensor], folder: Path, extras: Extras, shard: str) -> None:
    """Configuration, weights, and the generation settings: the base's own file where there is one."""
    shell = _shell(model, config)
    shell.load_state_dict(dict(state), strict=True, assign=True)
    shell.tie_weights()
    tied = shell.state_dict()
    if apart := [key for key, value in state.items() if not _same(tied[key], value)]:
        raise BackboneError(
            f"The configuration says that {listed(apart)} is another weight too, and they differ.",
            remedy="Set model.config.tie_word_embeddings to False before the training.",
        )
    own = None if extras.source is None else extras.source / _GENERATION
    if shell.can_generate():
        given = getattr(model, "generation_config", None)
        copied = own is not None and own.is_file()
        shell.generation_config = type(shell.generation_config)() if copied or given is None else given
    try:
        shell.save_pretrained(folder, max_shard_size=shard)
    except (ValueError, TypeError, AttributeError) as error:  # what transformers refuses has no common root
        raise BackboneError(
            f"transformers cannot write the {type(model).__name__}: {' '.join(str(error).split())}",
            remedy="Write the state dict alone: --out FILE.safetensors.",
        ) from error
    if own is not None and own.is_file():
        shutil.copyfile(own, folder / _GENERATION)


def _copy(extras: Extras, folder: Path) -> None:
    """The tokenizer's files, byte for byte the base's; those of a tokenizer without a folder as it writes them."""
    if extras.source is None:
        if extras.tokenizer is not None:
            extras.tokenizer.save_pretrained(folder)
        return
    code = ("*.py",) if json.loads((folder / "config.json").read_text("utf-8")).get("auto_map") else ()
    for pattern in (*_TOKENIZER, *code):
        for file in sorted(extras.source.glob(pattern)):
            target = folder / file.relative_to(extras.source)
            if file.is_file():
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, target)


def _label(config: Any, extras: Extras) -> None:
    """Writes the names of the outputs into a configuration."""
    if extras.labels:
        config.id2label = dict(enumerate(extras.labels))
        config.label2id = {name: place for place, name in enumerate(extras.labels)}
    if extras.problem:
        config.problem_type = extras.problem


def _image_settings(extras: Extras) -> dict[str, Any]:
    """How the model reads images, for transformers' processors."""
    preprocess, own = extras.preprocess, {}
    assert preprocess is not None
    if extras.source is not None and (extras.source / _READING).is_file():
        own = json.loads((extras.source / _READING).read_text("utf-8"))
    height, width = preprocess.size
    settings = {
        "image_processor_type": own.get("image_processor_type", "ViTImageProcessor"),
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": _RESAMPLE[preprocess.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
        "do_center_crop": False,
    }
    if preprocess.resize == "crop":
        settings |= {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
        settings["size"] = {"shortest_edge": round(_MARGIN * min(height, width))}
    return {**own, **settings}


# Checking.


def _checked(model: Any, state: Mapping[str, Tensor], folder: Path) -> tuple[str, ...]:
    """Raises BackboneError unless transformers finds every weight in the folder, the bits those of the model.

    Returns:
        What a user should be told: weights that a reload rounds.
    """
    found, told = type(model).from_pretrained(folder, device_map="meta", output_loading_info=True)
    lost = sorted({*map(str, told["missing_keys"]), *map(str, told["unexpected_keys"])})
    lost += [str(each) for each in told["mismatched_keys"]]
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for key in weights.keys():
                if key in state and not _same(weights.get_tensor(key), state[key]):
                    lost.append(key)
    if lost:
        raise BackboneError(
            f"transformers would not read back what was written: {listed(lost)}; nothing is left of it.",
            remedy="Write the state dict alone: --out FILE.safetensors.",
        )
    types = found.state_dict()
    rounded = [key for key, value in state.items() if key in types and types[key].dtype != value.dtype]
    if not rounded:
        return ()
    kinds = Counter(f"{state[key].dtype} as {types[key].dtype}".replace("torch.", "") for key in rounded)
    each = ", ".join(f"{count} of {kind}" for kind, count in kinds.items())
    return (f"from_pretrained reads some weights in another type, unless dtype= says otherwise: {each}.",)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() or torch.equal(_bits(one), _bits(other))


def _bits(value: Tensor) -> Tensor:
    """The bits as whole numbers: NaN is equal to itself."""
    value = value.detach().cpu().contiguous()
    return value.view(torch.uint8) if value.dim() else value.reshape(1).view(torch.uint8)
