"""What experts add to the loss of every objective: once, and averaged over microbatches."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5lite.objectives import (
    AnswerSpans,
    CausalLM,
    Classification,
    Contrastive,
    MaskedLM,
    Regression,
    TokenLabels,
)
from t5lite.objectives.base import expert_terms
from t5lite.training import Update, initial_state
from t5lite.training.step import train_step

VOCAB, LENGTH, ROWS = 8, 6, 4
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(1, VOCAB, (ROWS, LENGTH)).astype(np.int32)
ONES = np.ones((ROWS, LENGTH), np.float32)
EACH = np.ones(ROWS, np.float32)
SIZES = {"classification": 3, "regression": 1, "token_labels": 3, "spans": 2, "embedding": 4}


class Experts:
    """A model by the protocol, whose auxiliary losses are known: of the parameters and tokens."""

    aux = True

    def hidden(self, params, batch, *, rngs=None, train=False):
        tokens = next(rows for name, rows in sorted(batch.items()) if name.endswith("input_tokens"))
        mean = jnp.mean(tokens.astype(jnp.float32))
        aux = {"load_balancing": mean * params["router"], "router_z": jnp.square(params["router"])}
        return jnp.asarray(params["token"])[tokens], aux if self.aux else {}

    def logits(self, params, hidden):
        return hidden @ params["output"]

    def output(self, params, kind, hidden, valid, *, rngs=None, train=False):
        said = hidden @ params["output"][:, : SIZES[kind]]
        return said if kind in ("token_labels", "spans") else said.mean(axis=1)


class Dense(Experts):
    aux = False


PARAMS = {
    "router": np.float32(0.7),
    "token": RNG.standard_normal((VOCAB, 5)).astype(np.float32),
    "output": RNG.standard_normal((5, VOCAB)).astype(np.float32),
}


def targets(side):
    return {
        f"{side}_input_tokens": TOKENS,
        f"{side}_target_tokens": TOKENS,
        f"{side}_loss_weights": ONES,
        f"{side}_segment_ids": TOKENS,
    }


TEXTS = {"encoder_input_tokens": TOKENS, "encoder_segment_ids": TOKENS, "label_weights": EACH}
NUMBERS = np.arange(ROWS, dtype=np.int32) % 3
CASES = {
    "causal_lm": (CausalLM(topology="decoder"), targets("decoder")),
    "masked_lm": (MaskedLM(topology="encoder"), targets("encoder")),
    "classification": (Classification(), TEXTS | {"labels": NUMBERS}),
    "regression": (Regression(), TEXTS | {"labels": np.float32(NUMBERS)[:, None]}),
    "token_labels": (
        TokenLabels(),
        TEXTS | {"token_labels": TOKENS % 3, "token_weights": ONES},
    ),
    "spans": (AnswerSpans(), TEXTS | {"span_starts": NUMBERS, "span_ends": NUMBERS + 1}),
    "contrastive": (
        Contrastive(),
        TEXTS | {"other_input_tokens": TOKENS[:, ::-1] * 2 % VOCAB, "other_segment_ids": TOKENS},
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.light("causal_lm")
def test_every_objective_adds_them_once(name):
    objective, batch = CASES[name]
    terms, metrics = objective.loss(Experts(), PARAMS, batch)
    plain, plain_metrics = objective.loss(Dense(), PARAMS, batch)
    assert set(terms) == set(plain) | {"load_balancing", "router_z"}
    read = np.mean(TOKENS)
    if name == "contrastive":  # two calls, and no more weight than one has
        read = (read + np.mean(batch["other_input_tokens"])) / 2
    (balance, one), (z, same) = terms["load_balancing"], terms["router_z"]
    assert balance == pytest.approx(0.7 * read)
    assert z == pytest.approx(0.49)
    assert one == same == 1
    assert not {"load_balancing", "router_z"} & set(objective.weights(batch))
    for key in plain:
        np.testing.assert_array_equal(terms[key], plain[key])
    np.testing.assert_array_equal(list(metrics.values()), list(plain_metrics.values()))


def test_without_experts_there_are_none():
    assert expert_terms({}) == {}


@pytest.mark.parametrize("num_microbatches", [1, 2, 4])
def test_the_step_averages_them_over_microbatches(num_microbatches):
    objective, batch = CASES["causal_lm"]
    # What is not of experts is left out of the loss: only the former's gradient reaches the router.
    frozen = {name: leaf for name, leaf in PARAMS.items() if name != "router"}
    objective = types.SimpleNamespace(
        streams=("dropout",),
        token_arrays=(),
        weights=objective.weights,
        loss=lambda model, params, part, **options: objective_terms(params, frozen, part),
    )
    optimizer = optax.with_extra_args_support(optax.sgd(1.0))
    params = {"router": jnp.float32(0.7)}
    extra = {"update_scale": jnp.float32(1)}
    state = initial_state(params, optimizer, rng=jax.random.key(0), extra=extra)
    after, metrics = jax.jit(
        lambda state, batch: train_step(
            state,
            batch,
            model=Experts(),
            objective=objective,
            optimizer=optimizer,
            update=Update(num_microbatches=num_microbatches),
        )
    )(state, batch)
    mean = np.mean(TOKENS, dtype=np.float64)
    assert metrics["loss"] == pytest.approx(0.7 * mean + 0.49, rel=1e-5)
    assert after.params["router"] == pytest.approx(0.7 - (mean + 1.4), rel=1e-5)


def objective_terms(params, frozen, part):
    terms, metrics = CASES["causal_lm"][0].loss(Experts(), params | frozen, part)
    return {name: terms[name] for name in ("load_balancing", "router_z")}, metrics
