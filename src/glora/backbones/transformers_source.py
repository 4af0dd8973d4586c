"""Backbones out of transformers: language models, and classifiers of texts or of images, from a folder or a hub."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import nn

from glora import registry
from glora.backbones import Backbone, Loading, Spec
from glora.backbones.checkpoint import read_checkpoint
from glora.backbones.transformers_folder import quiet
from glora.backbones.weights import without_waiting
from glora.errors import BackboneError, GloraError, listed
from glora.tasks.images import Preprocess
from glora.tasks.texts import TextPreprocess

__all__ = ["load", "preprocess_of", "preprocess_with", "read_tokenizer"]

_PURPOSE = "A model of transformers"
_POOL = "pool"  # in the name of what makes one vector of a text's, and which checkpoints often lack
_UNLIMITED = 10**9  # what a tokenizer without a limit says is above it
_COUNTED_FROM_PADDING = {  # positions begin after the padding token's number, so that fewer are left for tokens
    "camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
_GROUP = 32  # numbers of an int4 weight with a scale of their own, at most
_LEAST_GROUP = 8


class _Kind(NamedTuple):
    """One kind of model.

    Attributes:
        auto: transformers' class that loads it.
        form: How it reads texts; None: it reads images.
        generates: Whether its output is the model's own, a text, and not a class.
    """

    auto: str
    form: Literal["causal", "encoder_decoder", "encoder"] | None
    generates: bool


_KINDS = (  # the first that fits
    _Kind("AutoModelForSeq2SeqLM", "encoder_decoder", generates=True),
    _Kind("AutoModelForCausalLM", "causal", generates=True),
    _Kind("AutoModelForSequenceClassification", "encoder", generates=False),
    _Kind("AutoModelForImageClassification", None, generates=False),
)


class _Wanted(NamedTuple):
    """What transformers is asked for: see `load_backbone`; `source` is what it reads, a folder or a hub's name."""

    name: str
    source: str
    num_classes: int | None
    image_size: int | None
    seed: int
    drop_path: float
    loading: Loading


def load(
    name: str,
    *,
    num_classes: int | None,
    image_size: int | None,
    checkpoint: Path | None,
    pretrained: bool,
    seed: int,
    drop_path: float,
    loading: Loading,
    folder: Path | None = None,
) -> Backbone:
    """The model of a folder or a hub's `owner/name` as a backbone; see `load_backbone`.

    Args:
        folder: Where the model of this name is, of a packaged one.

    Raises:
        BackboneError: The model is of another kind, cannot be built so, or its weights do not fit or are out of reach.
        MissingExtraError: transformers is not installed.
    """
    given = Path(name).expanduser()
    own = folder or (given.resolve() if given.is_dir() else None)
    wanted = _Wanted(name, str(own or name), num_classes, image_size, seed, drop_path, loading)
    with quiet(), without_waiting("text"):
        _check_quantize(wanted, from_config=checkpoint is not None or not pretrained)
        config = _config(wanted)
        kind = _kind(wanted, config)
        preprocess, notes = _reading(wanted, config, kind)
        model, head, more = _model(wanted, config, kind, checkpoint, pretrained=pretrained)
    if isinstance(preprocess, TextPreprocess):
        _check_vocabulary(wanted, model, preprocess)
    else:
        _check_size(wanted, model, preprocess)
    more += _prepare(wanted, model, head)
    spec = Spec(
        name=name if folder or own is None else str(own),
        image_size=image_size,
        checkpoint=None if checkpoint is None else str(checkpoint),
        pretrained=pretrained,
        seed=seed,
    )
    changed = {**loading.changed, **({"drop_path": drop_path} if drop_path else {})}
    return Backbone(name, model, preprocess, head, cast(Spec, {**spec, **changed}), (*notes, *more))


def preprocess_of(
    name: str, *, num_classes: int | None, loading: Loading, folder: Path | None = None
) -> Preprocess | TextPreprocess:
    """How the model of a folder or a hub's `owner/name` reads what it is given; its weights are not loaded.

    Raises:
        BackboneError: The model is of another kind, or out of reach.
        MissingExtraError: transformers is not installed.
    """
    given = Path(name).expanduser()
    own = folder or (given.resolve() if given.is_dir() else None)
    wanted = _Wanted(name, str(own or name), num_classes, None, 0, 0.0, loading)
    with quiet(), without_waiting("text"):
        config = _config(wanted)
        return _reading(wanted, config, _kind(wanted, config))[0]


def _transformers(module: str = "transformers") -> Any:
    return registry.optional_import(module, extra="text", purpose=_PURPOSE)


@contextlib.contextmanager
def _telling(wanted: _Wanted, what: str) -> Iterator[None]:
    """Within it any error of transformers becomes a BackboneError that says what could not be loaded."""
    try:
        yield
    except GloraError:
        raise
    except Exception as error:  # those of transformers and of the hub client have no common root
        reason = " ".join(str(error).split()) or type(error).__name__
        if "trust_remote_code" in reason:
            raise BackboneError(
                f"The model {wanted.name!r} comes with Python code of its own, which would have to be run.",
                allowed="No such code is run unless you say so.",
                remedy="Read that code; if you trust it: --set model.trust_remote_code=true",
            ) from error
        local = Path(wanted.source).is_dir()
        raise BackboneError(
            f"{what} of {wanted.name!r} could not be loaded: {reason[:300]}{'' if reason[:300].endswith('.') else '.'}",
            allowed="" if local else "It comes from a model hub, which needs a network or a warm cache.",
            remedy="Give a folder that transformers' save_pretrained wrote"
            + (", with .safetensors weights." if local else ", or --model smollm2_135m (packaged)."),
        ) from error


def _hub(wanted: _Wanted) -> dict[str, Any]:
    """Where and how transformers may look."""
    return {
        "trust_remote_code": wanted.loading.trust_remote_code,
        "local_files_only": Path(wanted.source).is_dir(),
    }


# What kind of model it is


def _config(wanted: _Wanted) -> Any:
    with _telling(wanted, "The configuration"):
        config = _transformers().AutoConfig.from_pretrained(wanted.source, **_hub(wanted))
    if wanted.num_classes is not None and config.num_labels != wanted.num_classes:
        config.num_labels = wanted.num_classes
    return config


def _has(config: Any, kind: _Kind) -> bool:
    """Whether there is such a model of this configuration."""
    if kind.auto in (getattr(config, "auto_map", None) or {}):
        return True
    if type(config) not in getattr(_transformers(), kind.auto)._model_mapping:
        return False
    if kind.form != "causal":
        return True
    masked = type(config) in _transformers().AutoModelForMaskedLM._model_mapping  # it reads a whole text at once
    return not masked or bool(getattr(config, "is_decoder", False))


def _kind(wanted: _Wanted, config: Any) -> _Kind:
    generates = wanted.num_classes is None
    found = [kind for kind in _KINDS if kind.generates == generates and _has(config, kind)]
    if found:
        return found[0]
    kind = f"The model {wanted.name!r}, a {config.model_type},"
    if generates:
        raise BackboneError(
            f"{kind} generates no text, and this objective trains a language model.",
            allowed="Causal language models and encoder-decoders.",
            remedy="Choose another model, such as --model smollm2_135m, or an objective with classes.",
        )
    raise BackboneError(
        f"{kind} has no classifier, and this objective needs one of {wanted.num_classes} outputs.",
        allowed="Models that transformers has a sequence or image classifier of.",
        remedy="Choose another model or another objective.",
    )


# How it reads


def _reading(wanted: _Wanted, config: Any, kind: _Kind) -> tuple[Preprocess | TextPreprocess, list[str]]:
    if kind.form is None:
        return _image_reading(wanted, config)
    if odd := [name for name in ("image_size", "drop_path") if getattr(wanted, name)]:
        given = " and ".join(f"{name}={getattr(wanted, name)}" for name in odd)
        raise BackboneError(f"{given}: {wanted.name!r} reads texts, not images.", remedy="Leave it out.")
    with _telling(wanted, "The tokenizer"):
        tokenizer = _transformers().AutoTokenizer.from_pretrained(wanted.source, **_hub(wanted))
    notes = _pad(wanted, tokenizer, config, kind)
    if wanted.loading.trust_remote_code and getattr(config, "auto_map", None):
        notes.append(f"Python code that came with {wanted.name} was run: trust_remote_code is set.")
    return TextPreprocess(tokenizer, wanted.name, kind.form, _max_length(tokenizer, config)), notes


def _pad(wanted: _Wanted, tokenizer: Any, config: Any, kind: _Kind) -> list[str]:
    """Gives the tokenizer a padding token where it has none, and a classifier's configuration its number."""
    notes = []
    if tokenizer.pad_token is None:
        token = tokenizer.eos_token or tokenizer.unk_token
        if token is None:
            raise BackboneError(
                f"The tokenizer of {wanted.name!r} has no token to pad with, and none that ends a text.",
                remedy="Set pad_token in its tokenizer_config.json.",
            )
        tokenizer.pad_token = token
        notes.append(f"The tokenizer has no padding token: {token!r} pads, and padding is masked by length.")
    if not kind.generates and getattr(config, "pad_token_id", None) is None:  # the classifier reads the last before it
        config.pad_token_id = tokenizer.pad_token_id
        notes.append(f"pad_token_id={tokenizer.pad_token_id} is set in the model's configuration, which had none.")
    return notes


def _max_length(tokenizer: Any, config: Any) -> int | None:
    """Most tokens of a sequence, as the tokenizer and the model's positions say; None where neither does."""
    text = config.get_text_config()
    places = getattr(text, "max_position_embeddings", None)
    if places is not None and text.model_type in _COUNTED_FROM_PADDING:
        places -= (text.pad_token_id or 0) + 1
    known = [int(each) for each in (tokenizer.model_max_length, places) if each is not None and 0 < each < _UNLIMITED]
    return min(known, default=None)


def _check_vocabulary(wanted: _Wanted, model: Any, preprocess: TextPreprocess) -> None:
    rows, tokens = model.get_input_embeddings().weight.shape[0], len(preprocess.tokenizer)
    if tokens > rows:
        raise BackboneError(
            f"The tokenizer of {wanted.name!r} has {tokens:,} tokens, and the model embeddings for {rows:,}.",
            allowed="An embedding for every token.",
            remedy="Call model.resize_token_embeddings(len(tokenizer)) and save both again.",
        )


def _image_reading(wanted: _Wanted, config: Any) -> tuple[Preprocess, list[str]]:
    processor = _transformers("transformers.image_processing_utils").BaseImageProcessor
    hub = {"local_files_only": Path(wanted.source).is_dir()}
    with _telling(wanted, "The preprocessor_config.json, which says how images are read,"):
        told, _ = processor.get_image_processor_dict(wanted.source, **hub)
    if wanted.drop_path:
        if not hasattr(config, "drop_path_rate"):
            raise BackboneError(
                f"drop_path={wanted.drop_path:g} is asked for, and {wanted.name!r} has no block that it could leave "
                "out.",
                remedy="Leave model.drop_path out, or choose another model.",
            )
        config.drop_path_rate = wanted.drop_path
    side = wanted.image_size
    size = (side, side) if side else _size(told.get("crop_size") or told.get("size"), config)
    mean: tuple[float, ...] = (0.0,) * 3
    std: tuple[float, ...] = (1.0,) * 3
    if told.get("do_normalize", True) and told.get("image_mean") is not None:
        mean, std = (tuple(map(float, told[key])) for key in ("image_mean", "image_std"))
    if len(mean) != len("RGB") or getattr(config, "num_channels", 3) != len("RGB"):
        raise BackboneError(f"The model {wanted.name!r} does not take 3 channels.", allowed="Images here have 3.")
    names = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL's numbers of its filters
    interpolation = names.get(told.get("resample", 2), "bicubic")
    return Preprocess(size, cast(Any, mean), cast(Any, std), interpolation), []


def _size(told: Any, config: Any) -> tuple[int, int]:
    """Height and width in pixels, out of the forms that a preprocessor's configuration has them in."""
    if isinstance(told, Mapping):
        if "height" in told:
            return int(told["height"]), int(told["width"])
        told = told.get("shortest_edge")
    if told is None:
        told = getattr(config, "image_size", 224)
    both = told if isinstance(told, list | tuple) else (told, told)
    return int(both[0]), int(both[1])


def _check_size(wanted: _Wanted, model: nn.Module, preprocess: Preprocess) -> None:
    if wanted.image_size is None:
        return
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, *preprocess.size, dtype=next(model.parameters()).dtype))
    except (RuntimeError, AssertionError, ValueError) as error:  # torch's shape errors and transformers' own checks
        raise BackboneError(
            f"The model {wanted.name!r} does not take images of {wanted.image_size} pixels.",
            remedy="Leave image_size out for the model's own.",
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training


# Its weights


def _auto(kind: _Kind) -> Any:
    return getattr(_transformers(), kind.auto)


def _dtype(wanted: _Wanted) -> torch.dtype:
    return cast(torch.dtype, getattr(torch, wanted.loading.dtype))


@contextlib.contextmanager
def _drawn_from(seed: int) -> Iterator[None]:
    """Within it what torch draws depends on the seed alone; its own state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the accelerators too
        yield


def _model(
    wanted: _Wanted, config: Any, kind: _Kind, checkpoint: Path | None, *, pretrained: bool
) -> tuple[nn.Module, tuple[str, ...], list[str]]:
    """The model with weights out of the file, its own or random, its head, and notes."""
    if checkpoint is not None:
        return _with_weights(wanted, config, kind, checkpoint)
    if pretrained:
        return _pretrained(wanted, config, kind)
    model = _bare(wanted, config, kind)
    return model, _head(wanted, model, kind), []


def _bare(wanted: _Wanted, config: Any, kind: _Kind) -> nn.Module:
    """The model with random weights."""
    trusted = {"trust_remote_code": wanted.loading.trust_remote_code}
    with _telling(wanted, "The model"), _drawn_from(wanted.seed):
        return cast(nn.Module, _auto(kind).from_config(config, dtype=_dtype(wanted), **trusted))


def _pretrained(wanted: _Wanted, config: Any, kind: _Kind) -> tuple[nn.Module, tuple[str, ...], list[str]]:
    """The model with its own weights, its head, and notes."""
    settings = {**_hub(wanted), **_bitsandbytes(wanted)}
    with _telling(wanted, "The pretrained weights"), _drawn_from(wanted.seed):
        model, info = _auto(kind).from_pretrained(wanted.source, **_asked(wanted, config), **settings)
    return model, *_checked(wanted, model, kind, info, f"The weights of {wanted.name!r}")


def _with_weights(
    wanted: _Wanted, config: Any, kind: _Kind, checkpoint: Path
) -> tuple[nn.Module, tuple[str, ...], list[str]]:
    """The model with the weights of a file, its head, and notes."""
    with torch.device("meta"):
        bare = _bare(wanted, config, kind)
    model_class: Any = type(bare)
    tensors, taken = read_checkpoint(checkpoint, names=bare.state_dict().keys())
    with _telling(wanted, f"The weights {str(checkpoint)!r}"), _drawn_from(wanted.seed):
        model, info = model_class.from_pretrained(None, state_dict=tensors, **_asked(wanted, config))
    head, notes = _checked(wanted, model, kind, info, f"The checkpoint {str(checkpoint)!r}")
    return model, head, [*taken, *notes]


def _asked(wanted: _Wanted, config: Any) -> dict[str, Any]:
    """What every loading of weights asks: exact numbers, no pickled files, and a report of what was not there."""
    return {
        "config": config,
        "dtype": _dtype(wanted),
        "use_safetensors": True,
        "ignore_mismatched_sizes": True,  # a classifier of other classes is made anew; all else is refused
        "output_loading_info": True,
    }


def _checked(
    wanted: _Wanted, model: nn.Module, kind: _Kind, info: Mapping[str, Any], what: str
) -> tuple[tuple[str, ...], list[str]]:
    """The head and what to say of it, of a model whose weights are its own wherever they must be.

    Raises:
        BackboneError: Other weights than a classifier's are missing, of another shape, or have no place in the model.
    """
    odd = {
        str(key): f"{key} {tuple(has)} where {tuple(needs)} is needed" for key, has, needs in info["mismatched_keys"]
    }
    fresh = sorted({*map(str, info["missing_keys"]), *odd})
    body = _body(model)
    wrong = [key for key in fresh if kind.generates or (key.startswith(body) and body and _POOL not in key)]
    modules = {name for name, _ in model.named_modules() if name}
    lost = [key for key in info["unexpected_keys"] if {(at := key.rpartition(".")[0]), f"{body}{at}"} & modules]
    if wrong or lost:
        kinds = {
            "missing": [key for key in wrong if key not in odd],
            "of another shape": [odd[key] for key in wrong if key in odd],
            "without a place in the model": sorted(lost),
        }
        raise BackboneError(
            f"{what} do not fit: " + "; ".join(f"{how}: {listed(keys)}" for how, keys in kinds.items() if keys) + ".",
            allowed="" if kind.generates else "Apart from the classifier, every weight must be there.",
            remedy="Check that config.json belongs to these weights (a Llama with biases says attention_bias).",
        )
    head = _head(wanted, model, kind, fresh)
    if odd:
        return head, [f"The checkpoint's classifier was left out, the head is fresh: {listed(odd.values())}."]
    made = [name for name in head if any(key.startswith(f"{name}.") for key in fresh)]
    return head, [f"Fresh, trained whole as the head: {listed(made)}."] if made else []


def _body(model: Any) -> str:
    """The beginning of the names of all that is not the head's: `bert.`; empty where the model does not tell."""
    prefix = model.base_model_prefix
    return f"{prefix}." if prefix and hasattr(model, prefix) and model.base_model is not model else ""


def _head(wanted: _Wanted, model: nn.Module, kind: _Kind, fresh: Collection[str] = ()) -> tuple[str, ...]:
    """The modules that are trained whole, of a classifier: all beside its body, and what is fresh within that."""
    if kind.generates:
        return ()
    body = _body(model)
    beside = [name for name, child in model.named_children() if name != body[:-1] and list(child.parameters())]
    if not body:
        beside = [name for name in beside if any(key.startswith(f"{name}.") for key in fresh)] or beside[-1:]
    pools = {name: module for name, module in model.named_modules() if name.startswith(body) and _POOL in name}
    made = [
        name
        for name, module in pools.items()
        if (own := [f"{name}.{key}" for key, _ in module.named_parameters()]) and all(key in fresh for key in own)
    ]
    outermost = [name for name in made if not any(name.startswith(f"{other}.") for other in made)]
    found = (*outermost, *(name for name in beside if name not in outermost))
    if not found:
        raise BackboneError(f"The model {wanted.name!r} has no classifier to train.", remedy="Choose another model.")
    return found


# What it is then made into


def _prepare(wanted: _Wanted, model: Any, head: tuple[str, ...]) -> list[str]:
    """Quantises and checkpoints as asked; what to say of it."""
    notes = []
    model.eval()
    if (dtype := wanted.loading.dtype) != "float32" and head:
        notes.append(f"The head is trained in {dtype}, the type of the base.")
    if wanted.loading.quantize in ("int8", "int4"):
        notes += _quantized(model, wanted.loading.quantize, head)
    if wanted.loading.quantize == "bnb_int8":
        notes.append("bitsandbytes rounds what enters a layer of int8 to float16.")
    if wanted.loading.activation_checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        try:
            enable({"use_reentrant": False})
        except ValueError as error:
            raise BackboneError(
                f"activation_checkpointing is asked for, and {wanted.name!r} has none.", remedy="Leave it out."
            ) from error
    return notes


def _quantized(model: Any, how: str, head: tuple[str, ...]) -> list[str]:
    """Quantises, by torchao, the weights of the Linear layers but for the head and a language model's output layer."""
    ao = registry.optional_import("torchao.quantization", extra="quantize", purpose=f"quantize={how}")
    output = model.get_output_embeddings()
    groups: dict[nn.Module, int] = {
        module: math.gcd(_GROUP, module.in_features)
        for name, module in model.named_modules()
        if type(module) is nn.Linear and module is not output
        if not any(name == each or name.startswith(f"{each}.") for each in head)
    }
    chosen = groups if how == "int8" else {module: n for module, n in groups.items() if n >= _LEAST_GROUP}
    for group in sorted(set(chosen.values())):
        some = {module for module, size in chosen.items() if size == group}
        if how == "int8":
            ao.quantize_(model, ao.Int8WeightOnlyConfig(), lambda module, _: module in chosen)
            break
        config = ao.IntxWeightOnlyConfig(weight_dtype=cast(Any, torch).int4, granularity=ao.granularity.PerGroup(group))
        ao.quantize_(model, config, lambda module, _, some=some: module in some)
    if not chosen:
        raise BackboneError(
            f"quantize={how}: the model has no Linear layer that it could quantise.", remedy="Leave it out."
        )
    kept = f", {len(groups) - len(chosen)} others not" if len(groups) > len(chosen) else ""
    return [f"The weights of {len(chosen)} Linear layers are quantised to {how}{kept}."]


def _check_quantize(wanted: _Wanted, *, from_config: bool) -> None:
    """Nothing where the model can be quantised as asked.

    Raises:
        BackboneError: bitsandbytes quantises while pretrained weights are loaded, and none are.
        MissingExtraError: torchao or bitsandbytes is not installed.
    """
    how = wanted.loading.quantize
    if how in ("int8", "int4"):
        registry.optional_import("torchao", extra="quantize", purpose=f"quantize={how}")
    elif how is not None:
        registry.optional_import("bitsandbytes", extra="bitsandbytes", purpose=f"quantize={how}")
        if from_config:
            raise BackboneError(
                f"quantize={how} works while pretrained weights are loaded, and these are none.",
                remedy="Use quantize=int8, or leave checkpoint and pretrained=false out.",
            )


def _bitsandbytes(wanted: _Wanted) -> dict[str, Any]:
    """The arguments of from_pretrained for quantising by bitsandbytes."""
    how, config = wanted.loading.quantize, _transformers().BitsAndBytesConfig
    if how == "bnb_int8":
        logging.getLogger("bitsandbytes.autograd._functions").addFilter(_says_more)
        return {"quantization_config": config(load_in_8bit=True)}
    if how == "bnb_nf4":
        four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": _dtype(wanted)}
        return {"quantization_config": config(load_in_4bit=True, **four)}
    return {}


def _says_more(record: logging.LogRecord) -> bool:
    """Whether a line says more than that an input is rounded, which bitsandbytes says of every product."""
    return "inputs will be cast" not in str(record.msg)


# Of a program's own model


def preprocess_with(model: Any, tokenizer: Any, *, num_classes: int | None) -> tuple[TextPreprocess, list[str]]:
    """How a model that a program has built reads texts, and what to say of it.

    Args:
        model: A model of transformers; a classifier's configuration gets the number of the padding token.
        tokenizer: Its tokenizer; it gets a token to pad with where it has none.
        num_classes: Outputs of its head; None: it generates.
    """
    config, name = model.config, type(model).__name__
    form = "encoder_decoder" if getattr(config, "is_encoder_decoder", False) else "causal"
    kind = next(each for each in _KINDS if each.form == (form if num_classes is None else "encoder"))
    wanted = _Wanted(name, name, num_classes, None, 0, 0.0, Loading())
    notes = _pad(wanted, tokenizer, config, kind)
    preprocess = TextPreprocess(tokenizer, name, cast(Any, kind.form), _max_length(tokenizer, config))
    _check_vocabulary(wanted, model, preprocess)
    return preprocess, notes


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer that a folder holds."""
    with quiet():
        return _transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True)
