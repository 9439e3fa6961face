"""The seams: batch names, packed = unpacked, parts = whole, and the example in the docstring."""

import dataclasses
import functools
import sys
import textwrap
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.data.packing import empty_rows, pad
from t5lite.errors import InputError
from t5lite.models.transformer import positions_of
from t5lite.objectives import (
    Objective,
    Seq2Seq,
    SpanCorruption,
    base,
    bind,
    encoder_decoder_batch,
)
from t5lite.rows import RowSpec

VOCAB, EMBED = 13, 4


class Toy:
    """A model by the protocol: a token, its position and its segment's inputs, summed."""

    def init(self, rng):
        shapes = {"token": (VOCAB, EMBED), "position": (32, EMBED), "output": (EMBED, VOCAB)}
        return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}

    def hidden(self, params, batch, *, rngs=None, train=False):
        tokens, inputs = batch["decoder_input_tokens"], batch["encoder_input_tokens"]
        places, sources = positions_of(batch, "decoder"), batch["encoder_segment_ids"]
        places = jnp.broadcast_to(places, tokens.shape)
        sinks = batch["decoder_segment_ids"]
        sees = (sinks[:, :, None] == sources[:, None, :]) & (sources > 0)[:, None, :]
        seen = jnp.einsum("bts,bse->bte", sees.astype(jnp.float32), params["token"][inputs])
        hidden = params["token"][tokens] + params["position"][places] + seen
        return hidden.astype(jnp.bfloat16), {}

    def logits(self, params, hidden):
        return hidden.astype(jnp.float32) @ params["output"]


EXAMPLES = [
    {"inputs": [7, 8, 5, 1], "targets": [3, 9, 1]},
    {"inputs": [8, 4, 9, 3, 1], "targets": [4, 1]},
    {"inputs": [2, 1], "targets": [6, 6, 5, 1]},
]
OPTIONS = [
    {},
    {"label_smoothing": 0.1, "chunk_length": 3},
    {"loss_normalizing_factor": "average_per_sequence"},
    {"loss_normalizing_factor": 7.0, "z_loss": 0.0},
]


def rows_of(groups, lengths):
    """Packs groups of examples into rows with segment ids and positions, one example at a time."""
    rows = {}
    for name, length in lengths.items():
        for suffix in ("", "_segment_ids"):
            rows[name + suffix] = np.zeros((len(groups), length), np.int32)
        for row, group in enumerate(groups):
            at = 0
            for segment, example in enumerate(group, 1):
                end = at + len(example[name])
                rows[name][row, at:end] = example[name]
                rows[name + "_segment_ids"][row, at:end] = segment
                at = end
    return rows


def unpacked(examples):
    examples = [{name: np.array(ids, np.int32) for name, ids in each.items()} for each in examples]
    return pad(examples, {"inputs": RowSpec(6), "targets": RowSpec(5)})


@functools.partial(jax.jit, static_argnums=(0, 3))
def step_loss(objective, params, batch, parts=1):
    """What the train step minimises, summed over `parts` of the rows; and the metrics."""
    weights = objective.weights(batch)
    size = len(batch["decoder_target_tokens"]) // parts
    value, metrics = jnp.float32(0), {}
    for part in range(parts):
        piece = {name: rows[part * size : (part + 1) * size] for name, rows in batch.items()}
        terms, measured = objective.loss(Toy(), params, piece, train=True)
        for name, (found, coefficient) in terms.items():
            value += coefficient * found / weights[name]
        for name, pair in measured.items():
            metrics[name] = jax.tree.map(jnp.add, metrics.get(name, (0.0, 0.0)), pair)
    return value, {name: found / weight for name, (found, weight) in metrics.items()}


@functools.partial(jax.jit, static_argnums=(0, 3))
def step_gradient(objective, params, batch, parts=1):
    return jax.value_and_grad(step_loss, argnums=1, has_aux=True)(objective, params, batch, parts)


@pytest.fixture
def params():
    return Toy().init(np.random.default_rng(0))


def test_packed_batch_is_seqios():
    """The example that SeqIO documents for its encoder-decoder converter."""
    batch = encoder_decoder_batch(rows_of([EXAMPLES[:2]], {"inputs": 10, "targets": 7}))
    expected = {
        "encoder_input_tokens": [7, 8, 5, 1, 8, 4, 9, 3, 1, 0],
        "encoder_segment_ids": [1, 1, 1, 1, 2, 2, 2, 2, 2, 0],
        "decoder_target_tokens": [3, 9, 1, 4, 1, 0, 0],
        "decoder_input_tokens": [0, 3, 9, 0, 4, 0, 0],
        "decoder_loss_weights": [1, 1, 1, 1, 1, 0, 0],
        "decoder_segment_ids": [1, 1, 1, 2, 2, 0, 0],
    }
    assert set(batch) == set(expected)
    for name, row in expected.items():
        np.testing.assert_array_equal(batch[name], [row], err_msg=name)
        assert batch[name].dtype == (np.float32 if name == "decoder_loss_weights" else np.int32)


def test_unpacked_batch_is_seqios():
    example = {"inputs": np.array([7, 1]), "targets": np.array([3, 9, 1])}
    batch = encoder_decoder_batch(pad([example], {"inputs": RowSpec(3), "targets": RowSpec(4)}))
    assert {name: rows.tolist() for name, rows in batch.items()} == {
        "encoder_input_tokens": [[7, 1, 0]],
        "encoder_segment_ids": [[1, 1, 0]],
        "encoder_lengths": [2],
        "decoder_target_tokens": [[3, 9, 1, 0]],
        "decoder_input_tokens": [[0, 3, 9, 0]],
        "decoder_segment_ids": [[1, 1, 1, 0]],
        "decoder_lengths": [3],
        "decoder_loss_weights": [[1, 1, 1, 0]],
    }


@pytest.mark.parametrize("packed", [True, False])
def test_rows_of_zeros_make_a_batch_without_weight(packed):
    specs = {"inputs": RowSpec(6), "targets": RowSpec(5)}
    batch = encoder_decoder_batch(empty_rows(specs, 2, packed=packed))
    assert all(len(value) == 2 and not value.any() for value in batch.values())


@pytest.mark.parametrize("options", OPTIONS[1:])
def test_packed_loss_equals_unpacked_loss(params, options):
    objective = Seq2Seq(**options)
    packed = rows_of([EXAMPLES[:2], EXAMPLES[2:]], {"inputs": 12, "targets": 9})
    found = step_gradient(objective, params, objective.batch(packed))
    expected = step_gradient(objective, params, objective.batch(unpacked(EXAMPLES)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), found, expected
    )
    (_, metrics), _ = found
    assert set(metrics) == {"loss", "accuracy"}


@pytest.mark.parametrize("options", OPTIONS[1:3])
def test_microbatches_add_up_to_the_whole_batch(params, options):
    objective = Seq2Seq(**options)
    batch = objective.batch(unpacked([*EXAMPLES, EXAMPLES[0]]))
    found, expected = (step_gradient(objective, params, batch, parts) for parts in (2, 1))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected
    )


@pytest.mark.parametrize("options", OPTIONS[2:])
def test_padding_rows_change_nothing_but_num_total(params, options):
    objective = Seq2Seq(**options)
    batch = objective.batch(unpacked(EXAMPLES))
    padded = {name: np.concatenate([rows, 0 * rows[:1]]) for name, rows in batch.items()}
    found, expected = (step_loss(objective, params, b) for b in (padded, batch))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)
    total = Seq2Seq(loss_normalizing_factor="NUM_TOTAL_TARGET_TOKENS")
    ratio = step_loss(total, params, padded)[0] / step_loss(total, params, batch)[0]
    np.testing.assert_allclose(ratio, 3 / 4, rtol=1e-5)


def test_average_per_sequence_weighs_sequences_alike(params):
    batch = Seq2Seq().batch(unpacked(EXAMPLES))
    alone = [
        step_loss(Seq2Seq(), params, {name: rows[i : i + 1] for name, rows in batch.items()})[0]
        for i in range(3)
    ]
    found, _ = step_loss(Seq2Seq(loss_normalizing_factor="AVERAGE_PER_SEQUENCE"), params, batch)
    np.testing.assert_allclose(found, np.mean(alone), rtol=1e-5)
    assert abs(float(found - step_loss(Seq2Seq(), params, batch)[0])) > 1e-3


def test_terms_and_metrics_are_float32_scalars(params):
    objective = Seq2Seq(label_smoothing=0.1)
    batch = objective.batch(unpacked(EXAMPLES))
    terms, metrics = jax.jit(objective.loss, static_argnums=0)(Toy(), params, batch)
    assert set(terms) == set(objective.weights(batch)) == {"cross_entropy", "z_loss"}
    for leaf in jax.tree.leaves((terms, metrics, objective.weights(batch))):
        assert leaf.shape == ()
        assert leaf.dtype == jnp.float32
    np.testing.assert_allclose(terms["z_loss"][1], 1e-4)
    assert float(metrics["loss"][1]) == 9.0
    plain, _ = jax.jit(Seq2Seq().loss, static_argnums=0)(
        Toy(), params, batch
    )  # the metric is not smoothed
    np.testing.assert_allclose(metrics["loss"][0], plain["cross_entropy"][0], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"label_smoothing": "0.1"}, "label_smoothing"),
        ({"z_loss": -1e-4}, "z_loss"),
        ({"z_loss": float("nan")}, "z_loss"),
        ({"chunk_length": 0}, "chunk_length"),
        ({"chunk_length": 2.5}, "chunk_length"),
        ({"loss_normalizing_factor": 0}, "loss_normalizing_factor"),
        ({"loss_normalizing_factor": True}, "loss_normalizing_factor"),
        ({"loss_normalizing_factor": "AVERAGE_PER_SEQENCE"}, "mean AVERAGE_PER_SEQUENCE"),
    ],
)
@pytest.mark.parametrize("make", [Seq2Seq, SpanCorruption])
def test_bad_loss_options_are_refused(make, options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


def test_the_example_in_the_docstring_trains(params, monkeypatch):
    lines = base.__doc__.split("all of it is:\n")[1].split("and in a config")[0]
    lines = textwrap.dedent(lines).strip()
    assert len(lines.splitlines()) <= 30
    mine = types.ModuleType("mine")
    monkeypatch.setitem(sys.modules, "mine", mine)
    exec(lines, mine.__dict__)
    objective: Objective = mine.Deshuffling(label_smoothing=0.1)
    assert dataclasses.replace(objective, z_loss=0.0).z_loss == 0.0

    examples = [{"targets": np.arange(2, 12)}, {"targets": np.arange(2, 5)}]
    rng = np.random.default_rng(0)
    prepared = list(
        objective.prepare(
            iter(examples), lengths={"inputs": 6, "targets": 5}, vocabulary=base.BareIds(), rng=rng
        )
    )
    for example, text in zip(prepared, ([2, 3, 4, 5], [2, 3, 4]), strict=True):
        assert example["targets"].tolist() == [*text, 1]
        assert sorted(example["inputs"][:-1]) == text
    loss, _ = step_loss(objective, params, objective.batch(unpacked(prepared)))
    assert np.isfinite(loss)
    # And on a decoder alone, with nothing more written.
    fitted = bind(objective, types.SimpleNamespace(topology="decoder", heads={"lm": None}))
    specs = fitted.rows({"inputs": 6, "targets": 5})
    assert {name: spec.length for name, spec in specs.items()} == {"targets": 11, "prefix": 11}


def test_an_objective_that_says_nothing_of_models_is_for_all_of_them():
    class Mine(Objective):
        features = ("targets",)

    bound = bind(Mine(), types.SimpleNamespace(topology="encoder", heads={}))
    assert (type(bound), bound.topology) == (Mine, "encoder")
    with pytest.raises(InputError, match=r"must be an objective; .* extends"):
        bind(object(), types.SimpleNamespace(topology="encoder", heads={}))
