"""Labels on the host and what heads say on the device: places, weights, metrics, negatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective_texts import BertWords, T5Words, batches, packed, prepare

from t5lite.errors import InputError
from t5lite.objectives import AnswerSpans, Classification, Contrastive, Regression, TokenLabels
from t5lite.rows import RowSpec

BERT, T5 = BertWords(), T5Words()
LENGTHS = {"inputs": 8, "targets": 6}
TEXT = np.array([7, 8, 9, 10])


class Says:
    """A model by the protocol: its parameters are what its head says."""

    def hidden(self, params, batch, *, rngs=None, train=False):
        return next(iter(batch.values())).astype(jnp.float32)[..., None], {}

    def output(self, params, kind, hidden, valid, *, rngs=None, train=False):
        return params


class Embeds(Says):
    """Its head says the mean of the tokens' vectors."""

    def output(self, params, kind, hidden, valid, *, rngs=None, train=False):
        inside = valid[..., None].astype(jnp.float32)
        vectors = params[hidden[..., 0].astype(jnp.int32)] * inside
        return vectors.sum(axis=1) / jnp.maximum(inside.sum(axis=1), 1.0)


@functools.partial(jax.jit, static_argnums=(0, 1))
def losses(objective, model, params, batch):
    """The loss that is minimised, its gradient, and the metrics."""

    def loss(params):
        terms, metrics = objective.loss(model, params, batch)
        weights = objective.weights(batch)
        total = sum(c * s / weights.get(name, 1.0) for name, (s, c) in terms.items())
        return total, {name: found / weight for name, (found, weight) in metrics.items()}

    return jax.value_and_grad(loss, has_aux=True)(params)


def examples_of(objective, labels, vocabulary=BERT, text=TEXT):
    raw = [{"inputs": text, "labels": np.array(each)} for each in labels]
    return prepare(objective, raw, lengths=LENGTHS, vocabulary=vocabulary)


def batch_of(objective, labels, vocabulary=BERT, **options):
    return batches(objective, examples_of(objective, labels, vocabulary), LENGTHS, **options)


@pytest.mark.parametrize(
    ("vocabulary", "stored", "expected"),
    [
        (BERT, [7, 8], [2, 7, 8, 3]),
        (BERT, [7, 8, 3, 0], [2, 7, 8, 3]),
        (BERT, range(7, 20), [2, 7, 8, 9, 10, 11, 12, 3]),
        (T5, [7, 8, 1], [7, 8, 1]),
        (None, [7, 8], [7, 8, 1]),
        (T5, range(7, 20), [7, 8, 9, 10, 11, 12, 13, 1]),
    ],
)
def test_texts_are_framed_as_the_vocabulary_has_it(vocabulary, stored, expected):
    (example,) = examples_of(Classification(), [[0]], vocabulary, np.array(stored))
    assert example["inputs"].tolist() == expected
    assert example["inputs"].dtype == np.int32


@pytest.mark.parametrize("topology", ["encoder", "decoder"])
def test_classes_and_their_weights(topology):
    batch = batch_of(Classification(topology=topology), [[0], [2], [-1]])
    text = {f"{topology}_{name}" for name in ("input_tokens", "segment_ids", "lengths")}
    assert set(batch) == text | {"labels", "label_weights"}
    assert batch["labels"].tolist() == [0, 2, 0, 0, 0]
    assert batch["label_weights"].tolist() == [1, 1, 0, 0, 0]
    assert batch["labels"].dtype == np.int32
    assert batch["label_weights"].dtype == np.float32


def test_classification_is_the_mean_cross_entropy_of_the_labelled():
    batch = batch_of(Classification(), [[0], [2], [-1]])
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    (loss, metrics), gradient = losses(Classification(), Says(), logits, batch)
    expected = -np.mean([jax.nn.log_softmax(logits[0])[0], jax.nn.log_softmax(logits[1])[2]])
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
    hits = [logits[0].argmax() == 0, logits[1].argmax() == 2]
    np.testing.assert_allclose(metrics["accuracy"], np.mean(hits))
    assert gradient[:2].all()
    assert not gradient[2:].any()
    (smooth, metrics), _ = losses(Classification(label_smoothing=0.1), Says(), logits, batch)
    assert abs(smooth - loss) > 1e-3
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)


def test_regression_is_the_mean_squared_error_of_existing_rows():
    objective = Regression(num_targets=2)
    batch = batch_of(objective, [[0.0, 0.0], [1.5, -2.0]])
    assert batch["labels"].dtype == np.float32
    assert batch["labels"].tolist()[:2] == [[0.0, 0.0], [1.5, -2.0]]
    assert batch["label_weights"].tolist() == [1, 1, 0, 0]  # zeros are numbers too
    said = np.array([[1, 0], [1.5, 0], [9, 9], [9, 9]], np.float32)
    (loss, metrics), gradient = losses(objective, Says(), said, batch)
    np.testing.assert_allclose(loss, (1 + 4) / 4)
    assert metrics["loss"] == metrics["mse"] == loss
    assert not gradient[2:].any()
    with pytest.raises(InputError, match=r"\(3,\).*RegressionHeadSpec\.num_targets"):
        examples_of(objective, [[1.0, 2.0, 3.0]])


@pytest.mark.parametrize(("vocabulary", "before"), [(BERT, 1), (T5, 0)])
def test_token_labels_stay_with_their_tokens(vocabulary, before):
    (example,) = examples_of(TokenLabels(), [[0, 2, -1, 1]], vocabulary)
    assert example["labels"].tolist() == [-1] * before + [0, 2, -1, 1, -1]
    assert example["labels"].size == example["inputs"].size
    long = np.arange(7, 20)
    (cut,) = examples_of(TokenLabels(), [np.arange(13)], vocabulary, long)
    np.testing.assert_array_equal(cut["labels"][before:-1], cut["inputs"][before:-1] - 7)
    (with_eos,) = examples_of(
        TokenLabels(), [[1] * 5], vocabulary, np.array([*TEXT, vocabulary.eos_id])
    )
    assert with_eos["labels"][-1] == -1
    with pytest.raises(InputError, match="3 labels for 4 tokens"):
        examples_of(TokenLabels(), [[1, 1, 1]], vocabulary)


def test_token_labels_are_packed_and_their_metrics_count_tokens():
    objective = TokenLabels(topology="decoder")
    examples = examples_of(objective, [[0, 1, 2, -1], [0, 0, 1, 1]], T5, TEXT)
    lengths = {"inputs": 10}
    batch = packed(objective, examples, lengths)
    assert batch["decoder_segment_ids"].tolist() == [[1] * 5 + [2] * 5]
    assert batch["token_labels"].tolist() == [[0, 1, 2, 0, 0, 0, 0, 1, 1, 0]]
    assert batch["token_weights"].tolist() == [[1, 1, 1, 0, 0, 1, 1, 1, 1, 0]]
    said = np.array([[1, 1, 0, 2, 2, 0, 0, 1, 2, 2]])
    logits = 5 * np.eye(3, dtype=np.float32)[said]
    (_, metrics), gradient = losses(objective, Says(), logits, batch)
    np.testing.assert_allclose(metrics["accuracy"], 4 / 7, rtol=1e-6)
    np.testing.assert_allclose(metrics["precision"], 2 / 4)
    np.testing.assert_allclose(metrics["recall"], 2 / 4)
    assert not gradient[0, [3, 4, 9]].any()


@pytest.mark.parametrize(("vocabulary", "before"), [(BERT, 1), (T5, 0)])
def test_answers_move_with_their_text_and_none_is_the_first_token(vocabulary, before):
    labels = [[1, 2], [-1, -1], [0, 3], [3, 9]]  # the last is cut off
    batch = batch_of(AnswerSpans(), labels, vocabulary)
    assert batch["span_starts"].tolist() == [1 + before, 0, before, 0, 0, 0]
    assert batch["span_ends"].tolist() == [2 + before, 0, 3 + before, 0, 0, 0]
    assert batch["label_weights"].tolist() == [1, 1, 1, 1, 0, 0]
    with pytest.raises(InputError, match="first and the last"):
        examples_of(AnswerSpans(), [[2, 1]], vocabulary)


def test_spans_are_looked_for_in_the_text_alone():
    batch = batch_of(AnswerSpans(), [[1, 2], [-1, -1]], T5)
    logits = np.zeros((4, 8, 2), np.float32)
    logits[:, 5:] = 50  # behind the text
    logits[0, 1, 0] = logits[0, 2, 1] = logits[1, 0, 0] = logits[1, 3, 1] = 4
    (loss, metrics), gradient = losses(AnswerSpans(), Says(), logits, batch)
    right, wrong = (np.log(np.exp(4) + 4) - logit for logit in (4, 0))
    np.testing.assert_allclose(loss, (3 * right + wrong) / 4, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], 3 / 4)
    np.testing.assert_allclose(metrics["exact_match"], 1 / 2)
    assert np.isfinite(gradient).all()
    assert not gradient[:, 5:].any()
    assert not gradient[2:].any()


COUPLES = [{"inputs": np.array([10 + i]), "targets": np.array([20 + i])} for i in range(3)]


@pytest.mark.parametrize("symmetric", [True, False])
def test_contrastive_is_the_cross_entropy_over_the_rows_that_exist(symmetric):
    objective = Contrastive(temperature=0.5, symmetric=symmetric)
    table = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    found = prepare(objective, COUPLES, lengths=LENGTHS, vocabulary=T5)
    alone, filled = (batches(objective, found, LENGTHS, fillers=n) for n in (0, 3))
    (loss, metrics), gradient = losses(objective, Embeds(), table, alone)
    one, other = ((table[i : i + 3] + table[1]) / 2 for i in (10, 20))
    logits = one @ other.T / 0.5
    rows, columns = (-np.diag(jax.nn.log_softmax(x)).mean() for x in (logits, logits.T))
    np.testing.assert_allclose(loss, (rows + columns) / 2 if symmetric else rows, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(logits.argmax(1) == range(3)))
    (same, others), same_gradient = losses(objective, Embeds(), table, filled)
    np.testing.assert_allclose(same, loss, rtol=1e-6)
    np.testing.assert_allclose(same_gradient, gradient, atol=1e-6)
    assert set(others) == set(metrics) == {"loss", "accuracy"}
    for name, value in metrics.items():
        np.testing.assert_allclose(others[name], value, rtol=1e-6)


def test_contrastive_batches_have_both_texts():
    objective = Contrastive(topology="decoder")
    found = prepare(objective, COUPLES, lengths=LENGTHS, vocabulary=BERT)
    batch = batches(objective, found, LENGTHS, fillers=0)
    arrays = ("input_tokens", "segment_ids", "lengths")
    assert set(batch) == {f"{side}_{name}" for side in ("decoder", "other") for name in arrays}
    assert objective.token_arrays == ("decoder_segment_ids", "other_segment_ids")
    assert batch["decoder_input_tokens"][0].tolist() == [2, 10, 3, 0, 0, 0, 0, 0]
    assert batch["other_input_tokens"][0].tolist() == [2, 20, 3, 0, 0, 0]


def test_labels_need_no_lengths_of_their_own():
    for objective, labels in (
        (Classification(), RowSpec(1, kind="per_example")),
        (AnswerSpans(), RowSpec(1, (2,), kind="per_example")),
        (TokenLabels(), RowSpec(8, kind="aligned", along="inputs")),
        (Regression(num_targets=3), RowSpec(1, (3,), "float32", "per_example")),
    ):
        assert objective.rows({"inputs": 8}) == {"inputs": RowSpec(8), "labels": labels}


@pytest.mark.parametrize(
    "make", [Classification, Regression, TokenLabels, AnswerSpans, Contrastive]
)
def test_missing_features_and_lengths_are_named(make):
    other = make.features[1]
    for missing, there in (("inputs", other), (other, "inputs")):
        with pytest.raises(InputError, match=rf"{make.__name__} needs the feature '{missing}'"):
            prepare(make(), [{there: np.array([1])}], lengths=LENGTHS, vocabulary=T5)
    with pytest.raises(InputError, match="has no 'inputs'"):
        make().rows({"targets": 5})


@pytest.mark.parametrize(
    ("objective", "labels", "shown"),
    [
        (Classification(), [1], ["w7 w8 w9 w10", "class 1"]),
        (Regression(num_targets=2), [0.5, 3.0], ["w7 w8 w9 w10", "0.5 3"]),
        (TokenLabels(), [0, 2, -1, 1], ["w7 w8 w9 w10", "w8=2 w10=1"]),
        (TokenLabels(), [0, 0, 0, 0], ["w7 w8 w9 w10", "all 0"]),
        (AnswerSpans(), [1, 2], ["w7 «w8 w9» w10"]),
        (AnswerSpans(), [-1, -1], ["w7 w8 w9 w10", "no answer"]),
    ],
)
def test_examples_are_shown_with_what_is_said_of_them(objective, labels, shown):
    (example,) = examples_of(objective, [labels], T5)
    assert objective.show(example, T5) == shown


def test_couples_are_shown_as_two_texts():
    (example, *_) = prepare(Contrastive(), COUPLES, lengths=LENGTHS, vocabulary=T5)
    assert Contrastive().show(example, T5) == ["w10", "w20"]


@pytest.mark.parametrize(
    ("make", "options"),
    [(Contrastive, {"temperature": 0}), (Classification, {"label_smoothing": 1.0})],
)
def test_bad_options_are_refused(make, options):
    with pytest.raises(InputError, match=next(iter(options))):
        make(**options)


def test_the_two_texts_of_a_pair_have_dropout_of_their_own():
    """A text is told from itself by its dropout alone (SimCSE)."""
    seen = []

    class Noisy(Embeds):
        def output(self, params, kind, hidden, valid, *, rngs=None, train=False):
            seen.append(jax.random.normal(rngs["dropout"], (len(hidden), 4)))
            return seen[-1]

    tokens = jnp.ones((3, 5), jnp.int32)
    names = ("input_tokens", "segment_ids")
    batch = {f"{side}_{name}": tokens for side in ("encoder", "other") for name in names}
    Contrastive().loss(Noisy(), None, batch, rngs={"dropout": jax.random.key(0)}, train=True)
    assert not np.allclose(*seen)
