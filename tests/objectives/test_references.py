"""Objectives that read further models: distillation and direct preferences, through the step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from preferences import Preferences

from t5lite.data import ArrayData
from t5lite.models import Model, override
from t5lite.objectives import CausalLM, bind, chunked
from t5lite.optimizers import SGD
from t5lite.parallel import Layout, make_mesh
from t5lite.training import Update, build

VOCAB, LENGTH = 40, 12
SMALL = {"vocab": VOCAB, "embed": 16, "*.num_layers": 1}
STUDENT = Model(override("gpt_nano", SMALL))
TEACHER = Model(override("gpt_nano", SMALL | {"embed": 24}))


def kl(teacher, student):
    """KL(teacher ‖ student) at each position, from logits `[batch, n, vocab]`."""
    log_p, log_q = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distilled(CausalLM):
    """Cross entropy, and the divergence from a teacher of another width."""

    def weights(self, batch):
        weights = super().weights(batch)
        return weights | {"divergence": weights["cross_entropy"]}

    def loss(self, model, params, batch, *, frozen, rngs, train):
        terms, metrics = super().loss(model, params, batch, rngs=rngs, train=train)
        teacher, theirs = self.reference_models["teacher"], frozen["teacher"]

        def divergence(seen, ours):
            return kl(teacher.logits(theirs, seen), model.logits(params, ours))

        hidden = [each.hidden(p, batch)[0] for each, p in ((teacher, theirs), (model, params))]
        losses = chunked(divergence, *hidden, chunk_length=self.chunk_length)
        total = jnp.sum(losses * batch["decoder_loss_weights"])
        return terms | {"divergence": (total, jnp.float32(1))}, metrics


def examples(names, count=16):
    rng = np.random.default_rng(0)
    return [
        {name: rng.integers(3, VOCAB, rng.integers(3, 9)).astype(np.int32) for name in names}
        for _ in range(count)
    ]


@pytest.mark.parametrize("num_microbatches", [1, 2])
@pytest.mark.parametrize("kind", ["distillation", "preferences"])
def test_a_loss_reads_references_that_stay_as_they_are(kind, num_microbatches):
    if kind == "distillation":
        objective, models = Distilled(references={"teacher": "its folder"}), {"teacher": TEACHER}
    else:
        objective, models = Preferences(), {"policy": STUDENT}
    objective = bind(objective, STUDENT, models)
    sizes = {"lengths": dict.fromkeys(objective.features, LENGTH), "batch_size": 8, "num_shards": 1}
    data = ArrayData(examples(objective.features), **sizes, pack=False)
    layout = Layout({"data": 2})
    program = build(
        STUDENT,
        objective,
        SGD(0.5),
        data.batch_shapes(objective),
        layout=layout,
        mesh=make_mesh(layout, jax.devices()[:2]),
        references=models,
        update=Update(num_microbatches=num_microbatches),
    )
    params = STUDENT.init(jax.random.key(0))
    drawn = {"teacher": TEACHER.init(jax.random.key(1)), "policy": params}
    references = {name: jax.tree.map(jnp.copy, drawn[name]) for name in models}
    kept = jax.device_get(references)
    state = program.start_from(jax.tree.map(jnp.copy, params), 0, references)
    stream, losses = data.train_batches(objective, seed=0), []
    batch = next(stream)
    stream.close()
    for _ in range(8):
        placed = {k: jax.device_put(v, program.batch[k].sharding) for k, v in batch.items()}
        state, metrics = program.step(state, placed)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.9 * losses[0]
    if kind == "preferences":  # nothing has been learnt at the start
        np.testing.assert_allclose(losses[0], np.log(2), rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.frozen["references"]), kept)
    moments = jax.tree.structure(state.params)
    assert moments == jax.tree.structure(params)


@pytest.mark.parametrize("chunk_length", [1, 3, 5, 12, 99])
def test_any_function_of_positions_is_the_same_in_chunks_gradients_too(chunk_length):
    rng = np.random.default_rng(0)
    one, other = (jnp.asarray(rng.normal(size=(2, LENGTH, n)), jnp.float32) for n in (5, 7))
    kernels = [jnp.asarray(rng.normal(size=(n, 9)), jnp.float32) for n in (5, 7)]

    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def total(kernels, one, other, chunk):
        def fn(one, other):
            return {"kl": kl(one @ kernels[0], other @ kernels[1]), "logits": one @ kernels[0]}

        values = chunked(fn, one, other, chunk_length=chunk)
        return jnp.sum(values["kl"] ** 2) + jnp.sum(values["logits"]), values

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5),
        total(kernels, one, other, chunk_length),
        total(kernels, one, other, None),
    )
