"""The objectives of language models: what is scored, how much is computed for it, and lm-eval as an oracle."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import glora
from glora.config import TrainSettings
from glora.errors import ConfigError, DataError
from glora.methods.method import get_method
from glora.tasks.evaluation import Evaluator
from glora.tasks.likelihood import cross_entropy, token_losses
from glora.tasks.objective import Batch, Objective, Targets
from glora.tasks.objectives.choose import Choose
from glora.tasks.objectives.classify import Classify
from glora.tasks.objectives.language import Language
from glora.tasks.objectives.multilabel import MultiLabel
from glora.tasks.objectives.regress import Regress
from glora.tasks.objectives.verbalize import Verbalize
from glora.tasks.texts import IGNORED, Choices, Question, QuestionSet, TextPreprocess
from glora.training.trainer import Trainer
from language import CAUSAL, tiny_causal, tiny_encoder, tiny_t5
from suites.token_rows import Questions, Rows, random_questions, random_rows

transformers = pytest.importorskip("transformers")

SOFTCAPPED = {"num_hidden_layers": 2, "sliding_window": 8, "final_logit_softcapping": 2.0}
KINDS = [*CAUSAL, "gemma2"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    found = {kind: tiny_causal(root / kind, kind) for kind in CAUSAL}
    capped = {**SOFTCAPPED, "query_pre_attn_scalar": 8, "head_dim": 8}
    found["gemma2"] = tiny_causal(root / "gemma2", "gemma2", **capped)
    found["t5"] = tiny_t5(root / "t5")
    found["bert"] = tiny_encoder(root / "bert")
    return found


def causal(folders: dict[str, Path], kind: str = "llama") -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folders[kind]).eval()


def words_of(model: Any) -> int:
    return int(model.config.vocab_size)


def by_hand(model: Any, rows: Rows, index: int) -> tuple[list[float], list[bool]]:
    """The losses of one row's learned tokens, and whether each is the likeliest, without padding or selection."""
    ids, start = rows.ids[index], rows.starts[index]
    logits = model(input_ids=torch.tensor([ids])).logits[0].float()
    losses = F.cross_entropy(logits[start - 1 : -1], torch.tensor(ids[start:]), reduction="none")
    return losses.tolist(), [int(logits[k - 1].argmax()) == ids[k] for k in range(start, len(ids))]


# -- language


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_losses_are_those_of_the_learned_tokens_in_a_full_computation(folders, kind):
    model, rows, objective = causal(folders, kind), random_rows(6), Language()
    batch = rows.batch(range(6))
    output = objective.forward(model, batch, train=False)
    expected = [by_hand(model, rows, k) for k in range(6)]
    flat = [loss for losses, _ in expected for loss in losses]
    torch.testing.assert_close(output.losses, torch.tensor(flat), rtol=1e-4, atol=1e-5)
    assert output.right.tolist() == [each for _, right in expected for each in right]
    assert output.counts.tolist() == rows.weights.tolist()
    assert output.rows.tolist() == [k for k in range(6) for _ in range(rows.weights[k])]
    means = [sum(losses) / len(losses) for losses, _ in expected]
    torch.testing.assert_close(objective.losses(output, batch), torch.tensor(means), rtol=1e-4, atol=1e-5)
    assert model.lm_head._forward_pre_hooks == {}, "and nothing is left at the model"


def test_what_it_gives_is_small(folders):
    model, rows = causal(folders), random_rows(6)
    with torch.no_grad():
        output = Language().forward(model, rows.batch(range(6)), train=False)
    assert sum(tensor.numel() for tensor in output) == 2 * int(rows.weights.sum()) + 6


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_a_full_computation(folders, kind):
    model, rows, objective = causal(folders, kind), random_rows(5), Language()
    batch, weights = rows.batch(range(5)), rows.weights.float()
    losses = objective.losses(objective.forward(model, batch, train=True), batch)
    ((losses * weights).sum() / weights.sum()).backward()
    mine = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    logits = model(**batch.inputs).logits
    F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.targets[:, 1:].flatten(), ignore_index=IGNORED).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(mine[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_the_weighted_loss_is_what_transformers_calls_the_loss(folders):
    model, rows = causal(folders), random_rows(9)
    evaluator = Evaluator(Language(), Accelerator(cpu=True), batch_size=4, tokens=40)
    found = evaluator.evaluate(model, rows)
    batch = rows.batch(range(9))
    with torch.no_grad():
        loss = model(**batch.inputs, labels=batch.targets).loss.item()
    assert found.value("loss") == pytest.approx(loss, rel=1e-5)
    assert found.value("perplexity") == pytest.approx(torch.tensor(loss).exp().item(), rel=1e-5)
    right = [each for k in range(9) for each in by_hand(model, rows, k)[1]]
    assert found.value("token_accuracy") == pytest.approx(sum(right) / len(right))
    assert found.score("loss")[0] == -found.value("loss")


@torch.no_grad()
def test_a_row_does_not_depend_on_the_padding_beside_it(folders):
    model, rows, objective = causal(folders), random_rows(8), Language()
    together = rows.batch(range(8))
    whole = objective.losses(objective.forward(model, together, train=False), together)
    for k in range(8):
        alone = rows.batch([k])
        mine = objective.losses(objective.forward(model, alone, train=False), alone)
        torch.testing.assert_close(mine, whole[k : k + 1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_encoder_decoder_is_given_the_response_moved_by_one(folders):
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folders["t5"]).eval()
    prompts, responses = random_rows(4), random_rows(4, seed=1)
    targets = responses.batch(range(4)).inputs["input_ids"]
    targets = targets.masked_fill(responses.batch(range(4)).inputs["attention_mask"] == 0, IGNORED)
    inputs = prompts.batch(range(4)).inputs
    output = Language().forward(model, Batch(inputs, targets), train=False)
    logits = model(**inputs, labels=targets).logits
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    torch.testing.assert_close(output.losses, expected[targets.flatten() != IGNORED], rtol=1e-4, atol=1e-5)
    assert output.counts.tolist() == responses.lengths


class Plain(nn.Module):
    """A language model of a user's own: no configuration, no name for its last layer, its embedding read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.words(input_ids).cumsum(1) @ self.words.weight.T


class Reading(Plain):
    """It names a last layer and does not call it."""

    def get_output_embeddings(self) -> nn.Module:
        return self.words


@pytest.mark.parametrize("kind", [Plain, Reading])
def test_a_model_without_a_last_layer_that_is_called_gives_all_logits(kind):
    model, rows = kind(), random_rows(4, vocabulary=50)
    batch = rows.batch(range(4))
    output = Language().forward(model, batch, train=True)
    logits = model(**batch.inputs)
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.targets[:, 1:].flatten(), reduction="none")
    torch.testing.assert_close(output.losses, expected[expected != 0], rtol=1e-4, atol=1e-5)
    alone = token_losses(model, batch.inputs["input_ids"], batch.targets)
    torch.testing.assert_close(alone.losses, output.losses)


def test_a_model_that_gives_no_logits_of_tokens_is_refused(folders):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folders["bert"], num_labels=2)
    with pytest.raises(DataError, match=r"BertForSequenceClassification gives logits of the shape \(4, 2\) for \(4,"):
        Language().forward(model, random_rows(4).batch(range(4)), train=False)


@pytest.mark.parametrize("pace", ["full", "fast", "lazy"])
def test_pace_is_refused_in_words(folders, pace):
    with pytest.raises(ConfigError, match=f"train.pace={pace} needs a distance between two outputs.*'language'"):
        list(trainer_of(causal(folders), random_rows(8), Language(), pace=pace, sampling="batch").run())


def test_a_persons_view_of_a_text_is_its_loss(folders):
    model, rows = causal(folders), random_rows(3)
    with torch.no_grad():
        found = Language().predictions(Language().forward(model, rows.batch(range(3)), train=False))
    assert json.loads(json.dumps(found)) == found
    for k, record in enumerate(found):
        losses, _ = by_hand(model, rows, k)
        assert record["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
        assert record["tokens"] == len(losses)


# -- how much is computed


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation makes, forwards or backwards."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        sizes = [each.numel() for each in tree_leaves(found) if isinstance(each, Tensor)]
        self.elements = max([self.elements, *sizes])
        return found


@pytest.mark.parametrize("objective", [Language(), Choose()], ids=lambda each: each.name)
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "t5"])
def test_no_tensor_has_a_row_of_the_vocabulary_for_every_token(folders, kind, objective):
    if kind == "t5":
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folders["t5"])
    else:
        model = causal(folders, kind)
    n, t = 4, 100
    ids = torch.randint(3, words_of(model), (n, t), generator=torch.Generator().manual_seed(0))
    learned = ids.clone()
    learned[:, :-3] = IGNORED
    targets = learned if objective.name == "language" else Choices(learned, torch.tensor([1, 0]), torch.ones(2, 2))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch = Batch(inputs, targets, rows=1 if objective.name == "language" else 2)
    with Largest() as largest:
        objective.losses(objective.forward(model, batch, train=True), batch).mean().backward()
    attention = n * 2 * t * t  # heads; of T5 with distances, of the others where it is computed plainly
    weights = words_of(model) * 16
    assert largest.elements <= max(attention, weights)
    assert largest.elements < n * t * words_of(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [2**24, 70])
def test_the_cross_entropy_is_torchs_in_float32_in_pieces(dtype, size, monkeypatch):
    monkeypatch.setattr("glora.tasks.likelihood.CHUNK", size)
    generator = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(7, 30, generator=generator)).to(dtype).requires_grad_()
    tokens, weights = torch.randint(0, 30, (7,), generator=generator), torch.rand(7, generator=generator)
    other = logits.detach().float().requires_grad_()
    found, expected = cross_entropy(logits, tokens), F.cross_entropy(other, tokens, reduction="none")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert logits.grad.dtype == dtype
    torch.testing.assert_close(
        logits.grad, other.grad.to(dtype), rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-6
    )


def test_the_cross_entropy_of_no_token_is_empty():
    logits = torch.randn(0, 5, requires_grad=True)
    found = cross_entropy(logits, torch.empty(0, dtype=torch.int64))
    assert found.shape == (0,)
    found.sum().backward()


# -- choose


@torch.no_grad()
def scores_by_hand(model: Any, questions: Questions, index: int) -> list[float]:
    prompt, found = questions.prompts[index], []
    for choice in questions.choices[index]:
        logits = model(input_ids=torch.tensor([prompt + choice])).logits[0].log_softmax(-1)
        found.append(sum(float(logits[len(prompt) - 1 + k, token]) for k, token in enumerate(choice)))
    return found


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_choice_is_as_likely_as_its_tokens_together(folders, kind):
    model, questions, objective = causal(folders, kind), random_questions(6), Choose()
    batch = questions.batch(range(6))
    output = objective.forward(model, batch, train=False)
    assert output.shape == (6, 4)
    values = objective.values(output, batch)
    for k in range(6):
        expected = scores_by_hand(model, questions, k)
        torch.testing.assert_close(output[k, : len(expected)], torch.tensor(expected), rtol=1e-4, atol=1e-4)
        assert output[k, len(expected) :].eq(-torch.inf).all()
        assert values["acc"][k] == (max(expected) == expected[questions.answers[k]])
        sized = [score / (2 * len(choice)) for score, choice in zip(expected, questions.choices[k], strict=True)]
        assert values["acc_norm"][k] == (max(sized) == sized[questions.answers[k]])
        loss = F.cross_entropy(torch.tensor([expected]), torch.tensor([questions.answers[k]]))
        assert values["loss"][k].item() == pytest.approx(loss.item(), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_choices_of_one_token_need_one_row_of_each_question(folders, kind):
    model, questions, sizes = causal(folders, kind), random_questions(6, tokens=1), []
    model.register_forward_pre_hook(lambda _, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True)
    batch = questions.batch(range(6))
    once = Choose().forward(model, batch, train=False)
    each = Choose().forward(model, batch, train=True)
    torch.testing.assert_close(once, each, rtol=1e-4, atol=1e-4)
    assert sizes == [6, 24]


def test_choices_of_one_token_after_prompts_of_their_own_need_every_row(folders):
    """As where the last letters of the prompt and the choice are one token."""
    model, questions = causal(folders), random_questions(4, tokens=1, choices=2)
    batch = questions.batch(range(4))
    batch.inputs["input_ids"][3, 1] += 1
    with torch.no_grad():
        each = Choose().forward(model, batch, train=True)
        torch.testing.assert_close(Choose().forward(model, batch, train=False), each)
        batch.inputs["input_ids"][3, 1] -= 1
        assert (Choose().forward(model, batch, train=False)[1, 1] - each[1, 1]).abs() > 1e-3


def test_questions_with_fewer_choices_have_a_finite_gradient_and_it_is_that_of_one_question_alone(folders):
    model, questions = causal(folders), random_questions(5)
    for objective in (Choose(), Choose(normalise="characters")):
        model.zero_grad()
        batch = questions.batch(range(5))
        objective.losses(objective.forward(model, batch, train=True), batch).sum().backward()
        whole = model.lm_head.weight.grad.clone()
        assert whole.isfinite().all()
        model.zero_grad()
        for k in range(5):
            alone = questions.subset([k]).batch([0])
            objective.losses(objective.forward(model, alone, train=True), alone).sum().backward()
        torch.testing.assert_close(model.lm_head.weight.grad, whole, rtol=1e-3, atol=1e-5)


def test_training_makes_the_right_choices_likelier(folders):
    model, questions = causal(folders), random_questions(12, vocabulary=40)
    evaluator = Evaluator(Choose(), Accelerator(cpu=True), batch_size=6)
    before = evaluator.evaluate(model, questions)
    trainer = trainer_of(model, questions, Choose(), epochs=30, lr=3e-2)
    list(trainer.run())
    trainer.tuned.activate(trainer.tuned.space.largest)
    after = evaluator.evaluate(model, questions)
    assert after.value("loss") < 0.7 * before.value("loss")
    assert after.value("acc") >= before.value("acc")


def test_the_distance_of_two_scores_leaves_out_choices_that_are_not_there():
    a = torch.tensor([[-1.0, -2.0, -torch.inf]], requires_grad=True)
    b = torch.tensor([[-1.0, -4.0, -torch.inf]])
    distance = Choose().distance(a, b)
    assert distance.tolist() == [4.0]
    distance.sum().backward()
    assert a.grad is not None and a.grad.tolist() == [[0.0, 4.0, 0.0]]


@pytest.mark.parametrize("wrong", [-1, "B", 1.5, True, None])
def test_an_answer_that_is_no_number_of_a_choice_is_refused(wrong):
    with pytest.raises(DataError, match=r"Example 1 of train has .* for its answer\."):
        Choose().encode(Targets(("answer",), [(0,), (wrong,)], what="train"))


# -- several genotypes in a batch


def trainer_of(
    model: nn.Module, examples: Any, objective: Objective, *, lr: float = 1e-3, sampling: str = "sample", **changes: Any
) -> Trainer:
    settings = {"ranks": (4, 2), "sampling": sampling, "largest": 0.0, "targets": ("q_proj", "down_proj")}
    tuned = get_method("glora", settings).apply(model, head=(), seed=0)
    train = TrainSettings(**{"epochs": 1, "batch_size": 4, "restart": False, **changes})
    return Trainer(tuned, examples, objective, train, lr=lr, seed=0, accelerator=Accelerator(cpu=True))


def played(trainer: Trainer) -> Iterator[Any]:
    """What is active in every forward pass of a training."""
    found: list[Any] = []
    adapted = trainer.tuned.adapted  # type: ignore[attr-defined]
    hook = trainer.tuned.model.register_forward_pre_hook(lambda *_: found.append(adapted.active), prepend=True)
    list(trainer.run())
    hook.remove()
    return iter(found)


def test_all_rows_of_an_example_play_its_genotype(folders):
    questions = random_questions(8)
    trainer = trainer_of(causal(folders), questions, Choose())
    for active in played(trainer):
        assert len(active) == 4 * questions.most
        assert [active[k] is active[k - k % questions.most] for k in range(len(active))] == [True] * len(active)
        assert len(set(active[:: questions.most])) == 4


def test_each_question_is_scored_by_its_own_genotype(folders):
    model, questions = causal(folders), random_questions(3)
    adapted = glora.inject(model, glora.SearchSpace((4, 2)), targets=("q_proj", "down_proj"), head=None)
    spread(adapted)
    genotypes = [adapted.sample(random.Random(seed)) for seed in range(3)]
    adapted.activate([genotype for genotype in genotypes for _ in range(questions.most)])
    with torch.no_grad():
        together = Choose().forward(model, questions.batch(range(3)), train=True)
        for k, genotype in enumerate(genotypes):
            adapted.activate(genotype)
            alone = Choose().forward(model, questions.batch([k]), train=True)
            torch.testing.assert_close(alone[0], together[k], rtol=1e-4, atol=1e-4)
            assert not torch.allclose(alone[0], together[k - 1], atol=1e-2)


def spread(adapted: glora.Adapted, scale: float = 0.3) -> None:
    """Random numbers in all support tensors, so that genotypes differ."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))


def test_an_adapted_last_layer_keeps_the_rows_apart(folders):
    """Its inputs are whole rows then: single positions of several rows could not be told apart."""
    model, rows = causal(folders), random_rows(4)
    adapted = glora.inject(model, glora.SearchSpace((4, 2)), targets=("lm_head", "q_proj"), head=None)
    spread(adapted)
    genotypes = [adapted.sample(random.Random(seed)) for seed in range(4)]
    adapted.activate(genotypes)
    with torch.no_grad():
        together = Language().forward(model, rows.batch(range(4)), train=True)
        means = together.means(together.losses)
        for k, genotype in enumerate(genotypes):
            adapted.activate(genotype)
            alone = Language().forward(model, rows.batch([k]), train=True)
            torch.testing.assert_close(alone.means(alone.losses)[0], means[k], rtol=1e-3, atol=1e-4)


# -- classes of texts


BERT = (
    (Classify(classes=("a", "b", "c")), torch.tensor([0, 1, 2, 0, 1])),
    (MultiLabel(labels=("a", "b", "c")), torch.eye(3)[[0, 1, 2, 0, 1]]),
    (Regress(columns=("x", "y", "z"), mean=(0.0,) * 3, std=(1.0,) * 3), torch.arange(15.0).view(5, 3)),
)


@pytest.mark.parametrize(("objective", "targets"), BERT, ids=lambda each: getattr(each, "name", ""))
def test_a_sequence_classifier_learns_of_texts_what_others_learn_of_images(folders, objective, targets):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folders["bert"], num_labels=3).eval()
    inputs = random_rows(5).batch(range(5)).inputs
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    batch = Batch(inputs, targets)
    output = objective.forward(model, batch, train=True)
    torch.testing.assert_close(output, model(**inputs).logits)
    losses = objective.losses(output, batch)
    assert losses.shape == (5,)
    losses.mean().backward()
    assert model.classifier.weight.grad.abs().max() > 0
    assert len(objective.predictions(output.detach())) == 5


CLASSES = Targets(("class",), [("pos",), ("neg",), ("pos",)])


def test_a_class_is_its_word():
    assert Verbalize().named(CLASSES).choices == ("neg", "pos")
    named = Verbalize(words={"pos": "very good"}).named(CLASSES)
    assert named.choices == ("neg", "very good")
    assert named.encode(CLASSES).tolist() == [1, 0, 1]
    assert named.question("It {pair} rained.") == "Text: It {pair} rained.\nClass:"
    assert named.question("a", "b") == "First: a\nSecond: b\nClass:"
    own = Verbalize(prompt='{"x": "{pair}", "y": "{text}"}: ')
    assert own.question("one", "two") == '{"x": "two", "y": "one"}: '


def test_words_and_prompts_that_cannot_be_are_refused():
    with pytest.raises(DataError, match=r"has a word of the class 'poss'.*Did you mean 'pos'"):
        Verbalize(words={"poss": "good"}).named(CLASSES)
    with pytest.raises(DataError, match="Several classes have the word 'pos'"):
        Verbalize(words={"neg": "pos"}).named(CLASSES)
    with pytest.raises(ValueError, match="has no place for the text"):
        Verbalize(prompt="Is it good?")
    with pytest.raises(DataError, match=r"has a second text, and objective.prompt has no place for one"):
        Verbalize(prompt="{text}").question("a", "b")
    with pytest.raises(DataError, match=r"has no second text, and objective.prompt has a place"):
        Verbalize(prompt="{text} {pair}").question("a")


@torch.no_grad()
def test_the_scores_of_classes_are_those_of_their_words(folders):
    model, questions = causal(folders), random_questions(4, choices=3)
    same = Questions(questions.prompts, (questions.choices[0],) * 4, (0, 1, 2, 1))
    batch = same.batch(range(4))
    objective = Verbalize(classes=("a", "b", "c"))
    output, choose = objective.forward(model, batch, train=False), Choose()
    torch.testing.assert_close(output, choose.forward(model, batch, train=False))
    values = objective.values(output, batch)
    torch.testing.assert_close(values["accuracy"], choose.values(output, batch)["acc"])
    torch.testing.assert_close(values["loss"], choose.values(output, batch)["loss"])
    sized = Verbalize(classes=("a", "b", "c"), normalise="characters")
    per_character = sized.values(sized.forward(model, batch, train=False), batch)
    torch.testing.assert_close(per_character["accuracy"], choose.values(output, batch)["acc_norm"])
    assert [set(record["probabilities"]) for record in objective.predictions(output)] == [{"a", "b", "c"}] * 4


# -- lm-eval as an oracle

QUESTIONS = (
    ("The capital of France is", ("Paris", "a colour of the sky", "Rome"), 0),
    ("Name a colour of the sky:", ("blue", "red", "seven", "an instruction"), 1),
    ("one two three four five", ("six", "nine ten", "seven eight"), 2),
    ("Question: What is the task? ", ("request", "assistant", "to write a response", "ten"), 3),
    ("The morning is", ("one", "Paris"), 1),
    ("### Input:\n", ("helpful", "describes"), 0),
)


def question_set(folder: Path, form: Any) -> QuestionSet:
    """The questions as a data source makes them and the model in the folder reads them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return QuestionSet([Question(*each) for each in QUESTIONS]).prepared(TextPreprocess(tokenizer, str(folder), form))


def tokens_read(batch: Batch, row: int) -> tuple[list[int], list[int]]:
    """What the model reads of one choice, and which of its tokens are scored."""
    ids, mask = (batch.inputs[name][row] for name in ("input_ids", "attention_mask"))
    scored = batch.targets.tokens[row]
    return ids[mask.bool()].tolist(), scored[scored != IGNORED].tolist()


TASK = """
task: own
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {file}}}}}
validation_split: validation
output_type: multiple_choice
doc_to_text: prompt
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


LM_EVAL = {"llama": "causal", "gpt2": "causal", "t5": "encoder_decoder"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind", [pytest.param("llama"), *(pytest.param(k, marks=pytest.mark.slow) for k in ("gpt2", "t5"))]
)
def test_questions_are_read_and_scored_as_lm_eval_does_row_by_row(folders, kind, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": p, "choices": c, "answer": a}) for p, c, a in QUESTIONS))
    (tmp_path / "own.yaml").write_text(TASK.format(file=file))
    classes = {"causal": transformers.AutoModelForCausalLM, "encoder_decoder": transformers.AutoModelForSeq2SeqLM}
    model = classes[LM_EVAL[kind]].from_pretrained(folders[kind]).eval()
    questions = question_set(folders[kind], LM_EVAL[kind])
    assert questions.found is not None
    harness = HFLM(pretrained=model, tokenizer=questions.found.preprocess.tokenizer, batch_size=3)
    told = simple_evaluate(
        model=harness,
        tasks=["own"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    batch, objective = questions.batch(range(len(questions))), Choose()
    with torch.no_grad():
        output = objective.forward(model, batch, train=False)
        values = objective.values(output, batch)
    samples = sorted(told["samples"]["own"], key=lambda sample: sample["doc_id"])
    assert len(samples) == len(QUESTIONS)
    for k, sample in enumerate(samples):
        for choice, pair in enumerate(sample["arguments"]):
            context, continuation = harness._encode_pair(*pair)
            read = context if kind == "t5" else context + continuation
            assert tokens_read(batch, k * batch.rows + choice) == (read, continuation)
        expected = [score for score, _ in sample["filtered_resps"]]
        torch.testing.assert_close(output[k, : len(expected)], torch.tensor(expected), rtol=1e-4, atol=1e-4)
        assert values["acc"][k] == sample["acc"]
        assert values["acc_norm"][k] == sample["acc_norm"]
    assert values["acc"].mean().item() == pytest.approx(told["results"]["own"]["acc,none"])
    assert values["acc_norm"].mean().item() == pytest.approx(told["results"]["own"]["acc_norm,none"])


LONG = (
    ("one two three four five six seven " * 4, ("one", "two three", "a colour of the sky"), 0),
    ("one two three four five six seven " * 4 + "eight", ("one", "two", "three"), 2),  # of one token: one row is enough
    ("Name a colour", ("blue", "red"), 1),
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("most", [12, 17])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_of_over_long_questions_as_much_is_read_as_lm_eval_reads(folders, kind, most):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = transformers.AutoModelForCausalLM.from_pretrained(folders[kind]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[kind])
    preprocess = TextPreprocess(tokenizer, kind, "causal", most)
    questions = QuestionSet([Question(*each) for each in LONG]).prepared(preprocess)
    seen: list[int] = []
    hook = model.register_forward_pre_hook(lambda *all: seen.append(all[2]["input_ids"].shape[1]), with_kwargs=True)
    ours = [
        Choose().forward(model, questions.batch([k]), train=train) for k in range(len(LONG)) for train in (False, True)
    ]
    hook.remove()
    assert max(seen) == most and questions.lengths == [3 * most, 3 * most, 3 * min(most, questions.lengths[2] // 3)]
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, max_length=most)
    for k, (prompt, choices, _) in enumerate(LONG):
        asked = [Instance("loglikelihood", {}, (prompt, f" {choice}"), place) for place, choice in enumerate(choices)]
        expected = [score for score, _ in harness.loglikelihood(asked, disable_tqdm=True)]
        for found in ours[2 * k : 2 * k + 2]:
            torch.testing.assert_close(found[0, : len(choices)], torch.tensor(expected), rtol=1e-4, atol=1e-4)
