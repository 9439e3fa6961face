"""Batches of like lengths hold the same rows with less padding, on any number of processes."""

import collections

import jax
import numpy as np
import pytest

from t5lite.data import ArrayData, Bytes
from t5lite.data.batches import merge_states
from t5lite.data.like_lengths import cut, cut_lengths
from t5lite.experiment.preview import look
from t5lite.layers import ClassificationHeadSpec, EmbeddingHeadSpec, TokenLabelsHeadSpec
from t5lite.models import Model, override
from t5lite.objectives import AnswerSpans, Classification, Contrastive, Regression, TokenLabels
from t5lite.rows import RowSpec

LENGTH, ROWS = 48, 8
SMALL = {
    "vocab": 384,
    "embed": 16,
    "encoder.num_layers": 1,
    "*.blocks.*.attention.num_heads": 2,
    "*.blocks.*.attention.head_dim": 8,
    "*.blocks.*.mlp.hidden": 16,
    "*.dropout_rate": 0.0,
}


def data(labels=1, count=400, **changes):
    rng = np.random.default_rng(0)
    examples = []
    for number in range(count):
        size = int(rng.integers(3, LENGTH - 2) * rng.random()) + 2
        inputs = rng.integers(5, 200, size).astype(np.int32)
        found = number % 2 if labels == 1 else np.arange(labels or size) % 2
        targets = inputs[: size // 2 + 1]
        examples.append({"inputs": inputs, "labels": np.atleast_1d(found), "targets": targets})
    options = {"batch_size": ROWS, "pack": False, "vocab": Bytes(), "num_shards": ROWS}
    options["lengths"] = {"inputs": LENGTH, "targets": LENGTH}
    return ArrayData(examples, **(options | changes))


OBJECTIVES = [
    pytest.param(Classification(), 1, id="classification"),
    pytest.param(Regression(), 1, id="regression"),
    pytest.param(AnswerSpans(), 2, id="spans"),
    pytest.param(TokenLabels(), 0, id="token labels"),
    pytest.param(Contrastive(), 1, id="contrastive"),
]


def taken(data, objective, count, *, state=None, **options):
    stream = data.train_batches(objective, seed=3, **options)
    if state:
        stream.load_state_dict(state)
    found = [next(stream) for _ in range(count)]
    state, padding = stream.state_dict(), stream.padding_share
    stream.close()
    return found, state, padding


def row(batch, index):
    """A row of a batch without its padding: what is asked of it, and its tokens."""
    parts = []
    for name, values in sorted(batch.items()):
        value = np.atleast_1d(values[index])
        parts.append((name, tuple(np.trim_zeros(value, "b").tolist())))
    return tuple(parts)


@pytest.mark.parametrize(("objective", "labels"), OBJECTIVES)
def test_an_epoch_has_the_same_rows_with_less_padding(objective, labels):
    count = 400 // ROWS
    seen = {}
    for like in (False, True):
        batches, _, padding = taken(data(labels, like_lengths=like), objective, count)
        rows = collections.Counter(row(each, i) for each in batches for i in range(ROWS))
        shapes = {each["encoder_input_tokens"].shape[1] for each in batches}
        seen[like] = rows, padding, shapes
    assert seen[True][0] == seen[False][0]
    assert seen[True][1] < 0.7 * seen[False][1]
    assert seen[False][2] == {LENGTH}
    assert 1 < len(seen[True][2]) <= 4
    assert seen[True][2] <= set(cut_lengths(LENGTH))


def test_resuming_goes_on_with_the_same_batches():
    ours, objective = data(), Classification()
    whole, _, _ = taken(ours, objective, 90)
    for stop in (1, 37, 64, 70):
        _, state, _ = taken(ours, objective, stop)
        rest, _, _ = taken(ours, objective, 90 - stop, state=state)
        for left, right in zip(whole[stop:], rest, strict=True):
            jax.tree.map(np.testing.assert_array_equal, left, right)


def test_processes_agree_on_rows_and_shapes():
    ours, objective = data(), Classification()
    whole, together, _ = taken(ours, objective, 70)
    parts = [taken(ours, objective, 70, shards=shards) for shards in ((0, 1, 4), (2, 3, 5, 6, 7))]
    for step, batch in enumerate(whole):
        mine = [found[step]["encoder_input_tokens"] for found, _, _ in parts]
        assert {each.shape[1] for each in mine} == {LENGTH}  # nobody knows the others' lengths
        joined = np.concatenate(mine)[[0, 1, 3, 4, 2, 5, 6, 7]]
        cut_to = batch["encoder_input_tokens"].shape[1]
        np.testing.assert_array_equal(joined[:, :cut_to], batch["encoder_input_tokens"])
        assert not joined[:, cut_to:].any()
    merged = merge_states(state for _, state, _ in parts)
    assert merged == together


def test_another_order_is_refused_when_resuming():
    _, state, _ = taken(data(like_lengths=False), Classification(), 3)
    with pytest.raises(ValueError, match="like_lengths"):
        taken(data(), Classification(), 1, state=state)


@pytest.mark.parametrize(
    ("objective", "labels", "head"),
    [
        (Classification(), 1, ClassificationHeadSpec(num_classes=2, pooling="mean")),
        (TokenLabels(), 0, TokenLabelsHeadSpec(num_labels=2)),
        (Contrastive(), 1, EmbeddingHeadSpec()),
    ],
)
def test_the_loss_of_a_cut_batch_is_that_of_the_whole_one(objective, labels, head):
    model = Model(override("bert_nano", SMALL | {"heads": [head]}))
    objective = objective.bind(model)
    params = jax.jit(model.init)(jax.random.key(0))
    room = {"count": ROWS, "lengths": {"inputs": 2 * LENGTH, "targets": 2 * LENGTH}}
    (short,), _, _ = taken(data(labels, **room), objective, 1)
    (long,), _, _ = taken(data(labels, **room, like_lengths=False), objective, 1)
    assert short["encoder_input_tokens"].shape < long["encoder_input_tokens"].shape
    losses = []
    for batch in (short, long):
        terms, _ = objective.loss(model, params, batch)
        losses.append([float(total) for total, _ in terms.values()])
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 3, 8, 16, 24, 48, 96, 100, 128, 512, 1000])
def test_lengths_to_cut_to_are_few_and_end_with_the_whole(length):
    found = cut_lengths(length)
    assert found == sorted(found)
    assert found[-1] == length
    assert all(each % 8 == 0 for each in found if each != length)


def test_padding_that_is_a_token_is_kept():
    rows = {"x": np.zeros((2, 32), int), "x_segment_ids": np.zeros((2, 32), int), "y": np.ones(2)}
    specs = {"x": RowSpec(32), "y": RowSpec(1, kind="per_example")}
    rows["x_segment_ids"][1, :17] = 1
    assert {name: value.shape for name, value in cut(rows, specs).items()} == {
        "x": (2, 24),
        "x_segment_ids": (2, 24),
        "y": (2,),
    }


def test_a_look_at_the_data_sees_batches_of_several_lengths():
    seen = {
        like: look(data(like_lengths=like), Classification(), split="train", count=1, seed=3)
        for like in (False, True)
    }
    assert seen[True].padding["inputs"] < 0.75 * seen[False].padding["inputs"]
    assert seen[True].examples_per_row == seen[False].examples_per_row == 1
