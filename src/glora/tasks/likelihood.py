"""How likely a language model finds tokens: the logits that predict them are computed, and no others.

Most of what a language model keeps for its backward pass are logits: rows x tokens x vocabulary, of which a loss reads
those of the answers alone. So the last layer, which makes logits of hidden states, is given the states of these
positions: a hook on it drops the others, which works for every model whose logits come out of one module. What such a
model does to its logits afterwards (a scale, a soft cap) it does to each by itself.

Shapes: `n` rows of the model's batch, `t` tokens, `v` words of the vocabulary, `k` tokens that are predicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils import parametrize

from glora.errors import DataError
from glora.tasks.objective import Batch, logits_of
from glora.tasks.texts import IGNORED

__all__ = ["TokenLosses", "choice_scores", "cross_entropy", "token_losses"]

CHUNK = 2**24  # logits that are converted to float32 at a time


class TokenLosses(NamedTuple):
    """What a model makes of the tokens that it is to predict, row by row.

    Attributes:
        losses: The negative log-likelihood of each, `(k,)`, float32, with gradient.
        right: Whether it is the likeliest token, `(k,)`.
        counts: How many of them every row has, `(n,)`.
    """

    losses: Tensor
    right: Tensor
    counts: Tensor

    @property
    def rows(self) -> Tensor:
        """The row of each token, `(k,)`."""
        return torch.arange(len(self.counts), device=self.counts.device).repeat_interleave(self.counts)

    def sums(self, values: Tensor) -> Tensor:
        """The sum over each row, `(n,)`, of one value per token, `(k,)`."""
        most = int(self.counts.max()) if len(self.counts) else 0
        taken = torch.arange(most, device=values.device) < self.counts[:, None]  # (n, most)
        return values.new_zeros(taken.shape).masked_scatter(taken, values).sum(1)

    def means(self, values: Tensor) -> Tensor:
        """The mean over each row, `(n,)`, of one value per token, `(k,)`; 0 of a row without any."""
        return self.sums(values) / self.counts.clamp(min=1)


def token_losses(model: nn.Module, inputs: Any, targets: Tensor) -> TokenLosses:
    """The losses of the tokens that are targets.

    A causal model predicts the token after each position, and its first token never; an encoder-decoder's decoder is
    given the targets, moved by one.

    Args:
        model: A causal language model, or an encoder-decoder of transformers.
        inputs: What it takes by name, `input_ids` first, `(n, t)` each; or `input_ids` alone.
        targets: The token to be predicted, `IGNORED` elsewhere: `(n, t)` for the tokens of the inputs themselves; of
            an encoder-decoder `(n, u)`, the tokens of the output. One token more than is read may be predicted.

    Raises:
        DataError: The model gives no logits of these shapes.
    """
    given = dict(inputs) if isinstance(inputs, Mapping) else {"input_ids": inputs}
    if _has_decoder(model):
        given["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=targets)  # type: ignore[operator]
    else:
        read = next(iter(given.values())).shape[1]
        targets = F.pad(targets[:, 1:], (0, read - targets.shape[1] + 1), value=IGNORED)
    predicted = targets != IGNORED
    logits, tokens = _logits(model, given, predicted), targets[predicted]
    with torch.no_grad():
        right = logits.argmax(-1) == tokens
    return TokenLosses(cross_entropy(logits, tokens), right, predicted.sum(1))


def choice_scores(model: nn.Module, batch: Batch, *, train: bool) -> Tensor:
    """The summed log-likelihood of every choice, `(n, c)`; minus infinity where there is no such choice.

    If every choice is the prompt and one token more, one row of each question is enough.

    Args:
        model: As for `token_losses`.
        batch: n questions with c rows each, its targets `Choices`.
        train: Whether every row is computed in any case: in training each may have a genotype of its own.

    Raises:
        DataError: The model gives no logits of the right shape.
    """
    inputs, tokens = batch.inputs, batch.targets.tokens
    if not train and isinstance(inputs, Mapping) and not _has_decoder(model):
        questions = tokens.view(-1, batch.rows, tokens.shape[-1])
        place = _common_place(inputs["input_ids"].view(*questions.shape[:2], -1), questions)
        if place is not None:
            return _one_token_scores(
                model, {name: each[:: batch.rows] for name, each in inputs.items()}, questions, place
            )
    found = token_losses(model, inputs, tokens)
    scores = -found.sums(found.losses)
    return scores.masked_fill(found.counts == 0, -torch.inf).view(-1, batch.rows)


def _has_decoder(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _common_place(ids: Tensor, tokens: Tensor) -> Tensor | None:
    """Where the one token of every choice of a question is, `(n, 1)`; None where they share no prompt, or have more.

    Args:
        ids: The tokens, `(n, c, t)`.
        tokens: Those that are scored, `(n, c, t)`, or one more; `IGNORED` elsewhere.
    """
    scored = tokens != IGNORED
    counts, places = scored.sum(-1), scored.int().argmax(-1)  # (n, c)
    first, there = places[:, :1], counts > 0
    prompt = torch.arange(ids.shape[-1], device=ids.device) < first[..., None]  # (n, 1, t)
    other = (places != first) | ((ids != ids[:, :1]) & prompt).any(-1)
    if bool((counts > 1).any() | (first == 0).any() | (other & there).any()):
        return None
    return first


def _one_token_scores(model: nn.Module, inputs: Mapping[str, Any], tokens: Tensor, place: Tensor) -> Tensor:
    """The log-likelihood of the one token of every choice, `(n, c)`, by the logits after the prompt alone."""
    positions = torch.zeros_like(inputs["input_ids"], dtype=torch.bool).scatter_(1, place - 1, True)
    chances = _logits(model, inputs, positions).float().log_softmax(-1)  # (n, v)
    chosen = tokens.gather(2, place[:, None].expand(-1, tokens.shape[1], 1)).squeeze(-1)  # (n, c)
    return chances.gather(1, chosen.clamp(min=0)).masked_fill(chosen == IGNORED, -torch.inf)


class _Selected:
    """A hook on the last layer: of its inputs `(n, t, d)` it leaves those of the positions that are asked for.

    A layer with parametrizations may treat every row in its own way, as one genotype per sample does. So it is given
    whole rows, `(n, u, d)`, from the first to the last of these positions.

    Args:
        positions: Which, `(n, t)`.
        by_rows: Whether rows stay whole.
    """

    def __init__(self, positions: Tensor, *, by_rows: bool) -> None:
        self.positions = positions
        self.by_rows = by_rows
        self.left: Tensor | None = positions  # of the logits' positions those that are asked for; None: all

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args or not isinstance(args[0], Tensor) or args[0].shape[:-1] != self.positions.shape:
            return None
        if not self.by_rows:
            self.left = None
            return (args[0][self.positions], *args[1:])
        some = self.positions.any(0).nonzero().flatten().tolist()
        columns = slice(some[0], some[-1] + 1) if some else slice(0, 1)
        self.left = self.positions[:, columns]
        return (args[0][:, columns], *args[1:])


def _logits(model: nn.Module, inputs: Mapping[str, Any], positions: Tensor) -> Tensor:
    """The model's logits at these positions, `(k, v)`, in its own type."""
    last = _last_layer(model)
    if getattr(
        getattr(model, "config", None), "use_cache", None
    ):  # of keys and values, for generating: nobody reads it
        inputs = {**inputs, "use_cache": False}
    selected = _Selected(positions, by_rows=last is not None and parametrize.is_parametrized(last))
    hook = None if last is None else last.register_forward_pre_hook(selected)
    try:
        logits = logits_of(model, model(**inputs))
    finally:
        if hook is not None:
            hook.remove()
    expected = (int(positions.sum()),) if selected.left is None else selected.left.shape
    if logits.shape[:-1] != expected:
        what, tokens = tuple(logits.shape), tuple(positions.shape)
        raise DataError(
            f"{type(model).__name__} gives logits of the shape {what} for {tokens} tokens.",
            allowed="One row of logits for every token.",
            remedy="Give a language model: causal, or an encoder-decoder.",
        )
    return logits if selected.left is None else logits[selected.left]


def _last_layer(model: nn.Module) -> nn.Module | None:
    """The module that makes logits of hidden states, as transformers' models name it; None where none does."""
    get = getattr(model, "get_output_embeddings", None)
    try:
        found = None if get is None else get()
    except NotImplementedError:
        return None
    return found if isinstance(found, nn.Module) else None


def cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """The negative log-likelihood of each token, `(k,)`, in float32, of logits `(k, v)` of any type.

    Nothing but the logits and their gradient has their size, both in their own type.
    """
    found: Tensor = _CrossEntropy.apply(logits, tokens)
    return found


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor) -> Tensor:
        totals = torch.cat([part.float().logsumexp(-1) for part in torch.split(logits, _rows(logits))])
        ctx.save_for_backward(logits, tokens, totals)
        return totals - logits.gather(1, tokens[:, None]).squeeze(1).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, tokens, totals = ctx.saved_tensors
        found = torch.empty_like(logits)
        size = _rows(logits)
        for first in range(0, len(logits), size):
            part = slice(first, first + size)
            chances = (logits[part].float() - totals[part, None]).exp_()
            chances.scatter_add_(1, tokens[part, None], chances.new_full((1, 1), -1.0).expand(len(chances), 1))
            found[part] = chances.mul_(gradient[part, None])
        return found, None


def _rows(logits: Tensor) -> int:
    """How many rows of the logits are in float32 at a time."""
    return max(1, CHUNK // max(1, logits.shape[-1]))
