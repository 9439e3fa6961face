"""Every objective trains every topology that it is for, and refuses the others with the reason."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5lite import data, layers, models, objectives, training
from t5lite.errors import InputError
from t5lite.framing import Frame

VOCAB, LENGTH, ROWS, STEPS = 64, 12, 16, 30


class Words:
    """A vocabulary by the protocol: ids are words, the last ones sentinels."""

    pad_id, eos_id, unk_id, size, num_sentinels = 0, 1, 2, VOCAB, 8
    pad_id, bos_id, mask_id = 0, None, None
    frame = target_frame = Frame(after=(1,))

    def sentinel(self, index):
        return self.size - 1 - index

    def piece(self, token_id):
        return f"▁w{token_id}"

    def decode(self, ids):
        return " ".join(f"w{i}" for i in ids)


HEADS = (
    layers.LMHeadSpec(),
    layers.ClassificationHeadSpec(num_classes=2),
    layers.RegressionHeadSpec(num_targets=2),
    layers.TokenLabelsHeadSpec(num_labels=3),
    layers.SpansHeadSpec(),
    layers.EmbeddingHeadSpec(size=16),
)


def spec_of(topology, heads=HEADS):
    attention = layers.AttentionSpec(2, 16)
    mlp = layers.MlpSpec(64, "relu")
    bias = layers.RelativeBiasSpec()
    cross = attention if topology == "encoder_decoder" else None
    block = models.TransformerBlockSpec(attention, mlp)
    crossing = models.TransformerBlockSpec(attention, mlp, cross_attention=cross)
    encoder = models.StackSpec(1, (block,), causal=False, position_bias=bias)
    decoder = models.StackSpec(1, (crossing,), causal=True, position_bias=bias)
    stacks = {"encoder": encoder, "decoder": decoder}
    return models.ModelSpec(
        family="test",
        vocab=VOCAB,
        embed=32,
        heads=heads,
        **{side: stack for side, stack in stacks.items() if side in topology},
    )


@functools.cache
def model_of(topology):
    return models.Model(spec_of(topology), models.ComputeSpec(scan=False))


@functools.cache
def state_of(topology):
    @jax.jit
    def init(key):
        params = model_of(topology).init(key)
        extra = training.Update().extra(params)
        return training.initial_state(params, OPTIMIZER, rng=key, extra=extra)

    return init(jax.random.key(0))


OPTIMIZER = optax.with_extra_args_support(optax.adam(1e-2))


def examples(make, count=160):
    return [make(np.random.default_rng(seed)) for seed in range(count)]


def counting(rng, size=10):
    """A text that counts up from somewhere: what comes next, or is missing, can be learnt."""
    return (10 + (rng.integers(16) + np.arange(size)) % 16).astype(np.int32)


def text(rng):
    return {"targets": counting(rng)}


def question(rng):
    first = counting(rng)
    return {"inputs": first, "targets": first[:3] + 20}


def of_class(rng):
    label = rng.integers(2)
    return {"inputs": 10 + 8 * label + rng.integers(8, size=9), "labels": np.array([label])}


def with_numbers(rng):
    example = of_class(rng)
    label = 2.0 * example["labels"][0] - 1
    return {"inputs": example["inputs"], "labels": np.array([label, -label], np.float32)}


def with_token_labels(rng):
    tokens = rng.integers(10, 25, size=rng.integers(4, 9))
    return {"inputs": tokens, "labels": (tokens - 10) // 5}


def with_answer(rng):
    tokens, at = rng.integers(10, 18, size=10), rng.integers(1, 8)
    tokens[at : at + 2] = 30, 31
    return {"inputs": tokens, "labels": np.array([at, at + 1])}


def couple(rng):
    topic = rng.integers(30)
    return {"inputs": np.full(6, 2 + topic), "targets": np.full(5, 32 + topic % 20)}


# What it learns from, and the share of its first loss that must not be left after 30 steps.
LEARNS = {
    "CausalLM": (text, 0.3),
    "PrefixLM": (text, 0.3),
    "MaskedLM": (text, 0.75),
    "SpanCorruption": (text, 0.5),
    "Seq2Seq": (question, 0.4),
    "Classification": (of_class, 0.1),
    "Regression": (with_numbers, 0.1),
    "TokenLabels": (with_token_labels, 0.1),
    "AnswerSpans": (with_answer, 0.1),
    "Contrastive": (couple, 0.4),
}
UNDERSTANDING = ["Classification", "Regression", "TokenLabels", "AnswerSpans", "Contrastive"]
FOR = {
    "encoder": ["MaskedLM", *UNDERSTANDING],
    "decoder": ["CausalLM", "PrefixLM", "Seq2Seq", "SpanCorruption", *UNDERSTANDING],
    "encoder_decoder": ["SpanCorruption", "Seq2Seq", "PrefixLM"],
}
VALID = [(topology, name) for topology, names in FOR.items() for name in names]
INVALID = [(topology, name) for topology in FOR for name in LEARNS if name not in FOR[topology]]


def data_of(name, **options):
    options = {"lengths": {"inputs": LENGTH, "targets": LENGTH}, "batch_size": ROWS} | options
    return data.ArrayData(train=examples(LEARNS[name][0]), vocab=Words(), **options)


def fitted(topology, name):
    return objectives.bind(getattr(objectives, name)(), model_of(topology))


@pytest.mark.parametrize(("topology", "name"), VALID)
@pytest.mark.light("encoder_decoder-SpanCorruption", "decoder-CausalLM", "encoder-MaskedLM")
def test_the_loss_falls_in_30_steps(topology, name):
    objective, model = fitted(topology, name), model_of(topology)
    source = data_of(name)
    shapes = source.batch_shapes(objective)
    step = jax.jit(
        functools.partial(
            training.train_step, model=model, objective=objective, optimizer=OPTIMIZER
        )
    )
    state, losses = state_of(topology), []
    batches = source.train_batches(objective, seed=0)
    try:
        for _ in range(STEPS):
            batch = next(batches)
            assert batch.keys() == shapes.keys()
            for key, shape in shapes.items():
                # Batches of like lengths are cut where all of their rows end.
                assert batch[key].dtype == shape.dtype
                assert (batch[key].shape[0], batch[key].ndim) == (shape.shape[0], len(shape.shape))
                assert np.all(np.array(batch[key].shape) <= np.array(shape.shape))
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
    finally:
        batches.close()
    assert bool(metrics["finite"])
    sums = metrics["sums"]
    assert {"loss"} < set(sums)
    assert all(leaf.shape == () for leaf in jax.tree.leaves(sums))
    assert np.mean(losses[-3:]) < LEARNS[name][1] * np.mean(losses[:2]), losses


@pytest.mark.parametrize(("topology", "name"), INVALID)
def test_what_does_not_fit_is_refused_with_its_reason(topology, name):
    reason = getattr(objectives, name).refusals[topology]
    with pytest.raises(InputError) as error:
        fitted(topology, name)
    message = str(error.value)
    assert message.startswith(f"objective = {name}: ")
    assert repr(topology) in message
    assert message.endswith(reason)
    # A reason, and then what to do instead.
    assert ": " in reason


@pytest.mark.parametrize("name", sorted(LEARNS))
def test_a_missing_head_is_named_with_the_spec_to_add(name):
    topology = next(topology for topology, names in FOR.items() if name in names)
    objective = getattr(objectives, name)()
    others = tuple(head for head in HEADS if head.kind != objective.head)
    with pytest.raises(InputError, match=r"ModelSpec\.heads") as error:
        objectives.bind(objective, models.Model(spec_of(topology, heads=others)))
    (spec,) = (type(head).__name__ for head in HEADS if head.kind == objective.head)
    assert f"layers.{spec}(" in str(error.value)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_decoder_sees_later_inputs_only_where_that_is_chosen(bidirectional):
    """By gradient: of the hidden state of each token with respect to each token's embedding."""
    model, params = model_of("decoder"), state_of("decoder").params
    chosen = {"bidirectional_inputs": True} if bidirectional else {}
    objective = objectives.bind(objectives.Seq2Seq(**chosen), model)
    inputs, targets = np.arange(10, 16, dtype=np.int32), np.arange(20, 24, dtype=np.int32)
    row = objectives.join_pair({"inputs": inputs, "targets": targets})
    specs = objective.rows({"inputs": inputs.size, "targets": targets.size})
    batch = objective.batch(data.packing.pad([row], specs))
    assert ("decoder_causal_attention" in batch) == bidirectional

    @jax.jit
    @jax.jacrev
    def dependence(table):
        read = {**params, "token_embedding": {"embedding": table}}
        return model.hidden(read, batch)[0][0].sum(axis=-1)

    (read,) = batch["decoder_input_tokens"]  # each token once: its row of the table is its own
    depends = np.abs(dependence(params["token_embedding"]["embedding"])[:, read]).sum(-1) > 0
    place = np.arange(read.size)
    expected = place[None] <= place[:, None]
    if bidirectional:
        expected |= (place <= inputs.size)[None] & (place <= inputs.size)[:, None]
    np.testing.assert_array_equal(depends, expected)


@pytest.mark.parametrize("name", ["CausalLM", "PrefixLM", "Seq2Seq"])
def test_packed_loss_is_unpacked_loss_on_a_decoder(name):
    objective, model = fitted("decoder", name), model_of("decoder")
    params = state_of("decoder").params
    lengths = {"inputs": 24, "targets": 24} if name != "CausalLM" else {"targets": 48}
    source = data_of(name, lengths=lengths)
    found = source.examples(objective, split="train", count=9, seed=3)
    rows = objective.rows(lengths)

    @jax.jit
    def mean_loss(batch):
        terms, metrics = objective.loss(model, params, batch)
        weights = objective.weights(batch)
        return sum(c * s / weights[k] for k, (s, c) in terms.items()), metrics

    packed, padded = (
        mean_loss({k: jnp.asarray(v) for k, v in objective.batch(make(found, rows)).items()})
        for make in (data.packing.pack, data.packing.pad)
    )
    assert len(data.packing.pack(found, rows)["targets"]) < len(found)
    for a, b in zip(jax.tree.leaves(packed), jax.tree.leaves(padded), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5)
