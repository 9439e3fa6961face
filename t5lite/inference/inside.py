"""Attention maps, per-token losses and gradient×input attribution of one text."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.data import Vocabulary
from t5lite.decoding import token_log_probabilities
from t5lite.errors import InputError
from t5lite.inference.gaps import encode
from t5lite.inference.loaded import Loaded
from t5lite.inference.requirements import require
from t5lite.models import Model
from t5lite.objectives import start_of
from t5lite.objectives.masked_lm import mask_of

_NUM_ALTERNATIVES = 5
_KINDS = ("encoder", "decoder", "cross")
Sizes = tuple[tuple[str, int], ...]  # the number of tokens of each stack: (("encoder", 9), …)


@dataclasses.dataclass(frozen=True, eq=False)
class Inside:
    """Attention and losses of one text.

    Args:
      tokens: the pieces that each stack reads, special ones included, by `encoder` and `decoder`.
      maps: attention weights by kind, `encoder`, `decoder` and `cross`, a float32 array
        `[heads, q_length, kv_length]` a layer, whose rows sum to 1; see `Model.attention`.
      outputs: the predicted pieces.
      places: `[outputs]` int32, the position in the last stack that predicts each of them.
      losses: `[outputs]` float32, their -log probability in nats. Of an encoder, with that one
        token masked: Salazar et al. 2020, arXiv:1910.14659, §2.
      alternatives: the most probable pieces at each output, with their probabilities, descending.
      targets: text that the decoder of an encoder-decoder predicts; None for other models.
      no_losses: why nothing is predicted; None for a model that predicts.
    """

    tokens: dict[str, list[str]]
    maps: dict[str, list[np.ndarray]]
    outputs: list[str]
    places: np.ndarray
    losses: np.ndarray
    alternatives: list[list[tuple[str, float]]]
    targets: str | None
    no_losses: str | None


def attention_maps(loaded: Loaded, text: str, targets: str | None = None) -> Inside:
    """Computes attention maps and losses of one text. Compiles for each number of tokens.

    Args:
      text: to read, with special tokens; `<extra_id_N>` are sentinels, as in `Loaded.generate`.
      targets: of an encoder-decoder; None for its answer, `generate([text])`.
    Raises: InputError without vocabulary or text, for a text too long for the model, or for targets
    of a model that is one stack.
    """
    reading = _read(loaded, text, targets)
    model, vocabulary = _plain(loaded.model), reading.vocabulary
    maps = jax.device_get(_weights(model, reading.sizes, loaded.params, reading.ids))
    losses, probabilities, ids = np.zeros(0, np.float32), np.zeros((0, 0)), np.zeros((0, 0), int)
    if reading.no_losses is None:
        computed = _losses(model, reading.sizes, loaded.params, *reading.predictions)
        losses, probabilities, ids = jax.device_get(computed)
    pieces = {
        stack: [vocabulary.piece(token) for token in part]
        for stack, part in _parts(reading.sizes, reading.ids).items()
    }
    alternatives = [
        [(vocabulary.piece(i), float(p)) for i, p in zip(*pair, strict=True)]
        for pair in zip(ids, probabilities, strict=True)
    ]
    return Inside(
        tokens=pieces,
        maps={kind: maps[kind] for kind in _KINDS if kind in maps},  # jax sorts names
        outputs=[vocabulary.piece(token) for token in reading.outputs],
        places=reading.positions,
        losses=losses,
        alternatives=alternatives,
        targets=reading.targets,
        no_losses=reading.no_losses,
    )


def attribution(loaded: Loaded, text: str, targets: str | None = None) -> np.ndarray:
    """Returns the first-order contribution of each input to the log-probability of each output.

    It is gradient × input: the gradient of the log-probability by a token's embedding, times that
    embedding, summed over features; positions and token types are left out. A row's sum is the
    growth rate of the log-probability as all embeddings are scaled.

    Args:
      loaded, text, targets: see `attention_maps`.
    Returns: `[outputs, inputs]` float32 in nats; outputs as in `Inside`, inputs the tokens of the
    encoder, then those of the decoder. Inputs that an output cannot see have 0.
    Raises: InputError as `attention_maps`, or if the model predicts no tokens.
    Source: Simonyan et al. 2013, arXiv:1312.6034, §3; for words Denil et al. 2014, arXiv:1412.6815.
    """
    reading = _read(loaded, text, targets)
    if reading.no_losses is not None:
        raise InputError(f"nothing is predicted: {reading.no_losses}")
    model = _plain(loaded.model)
    return np.asarray(_attribution(model, reading.sizes, loaded.params, *reading.predictions))


@dataclasses.dataclass(frozen=True, eq=False)
class _Reading:
    """A text as a model reads it: `ids` `[inputs]` of the encoder, then the decoder; `outputs` and
    `positions` `[outputs]` int32, the predicted ids and their positions in the last stack."""

    vocabulary: Vocabulary
    sizes: Sizes
    ids: np.ndarray
    outputs: np.ndarray
    positions: np.ndarray
    mask_id: int | None  # of an encoder
    targets: str | None
    no_losses: str | None

    @property
    def predictions(self) -> tuple[np.ndarray, ...]:
        """The inputs, `[rows, inputs]`, and each output's row, position and id."""
        rows, row = self.ids[None], np.zeros_like(self.outputs)
        if self.mask_id is not None:  # each output is masked in one row
            row = np.arange(len(self.outputs), dtype=np.int32)
            rows = np.tile(rows, (len(row), 1))
            rows[row, self.positions] = self.mask_id
        return rows, row, self.positions, self.outputs


def _read(loaded: Loaded, text: str, targets: str | None) -> _Reading:
    model, topology = loaded.model, loaded.model.topology
    vocabulary: Any = require(loaded, to="look inside")
    if targets is not None and topology != "encoder_decoder":
        raise InputError(
            f"targets = {targets!r}: are for encoder-decoders, and {loaded.folder} holds one "
            f"{topology}; give the text alone",
            field="targets",
        )
    outputs, mask_id, first = encode(text, vocabulary), None, 0
    if not outputs:
        raise InputError("the text is empty; give one with at least one token")
    no_losses = None if "lm" in model.heads else f"{loaded.folder} has no head for tokens"
    if topology == "decoder":
        start = [] if model.start_id is None else [model.start_id]
        outputs = start_of(vocabulary, model.start_id).without(outputs)
        ids = {"decoder": [*start, *outputs]}
        if not start:  # the first token has no context
            outputs = outputs[1:]
            no_losses = no_losses or (None if outputs else "the text has a single token")
    else:
        frame = vocabulary.frame if topology == "encoder" else loaded.prompts.of(None).inputs
        ids = {"encoder": frame(outputs)}
    _check_room(model, ids)
    if topology == "encoder":
        first = len(vocabulary.frame.before)
        try:
            mask_id = mask_of(vocabulary)
        except InputError:
            no_losses = no_losses or "the vocabulary has neither a mask token nor sentinels"
    elif topology == "encoder_decoder":
        targets = loaded.generate([text])[0] if targets is None else targets
        outputs = loaded.prompts.targets(encode(targets, vocabulary.targets))
        assert model.start_id is not None
        ids["decoder"] = [model.start_id, *outputs[:-1]]
        _check_room(model, ids)
    outputs = [] if no_losses else outputs
    return _Reading(
        vocabulary,
        tuple((stack, len(tokens)) for stack, tokens in ids.items()),
        np.concatenate([np.asarray(tokens, np.int32) for tokens in ids.values()]),
        np.asarray(outputs, np.int32),
        np.arange(first, first + len(outputs), dtype=np.int32),
        mask_id,
        targets,
        no_losses,
    )


def _check_room(model: Model, ids: Mapping[str, list[int]]) -> None:
    model.check({f"{stack}_input_tokens": np.array([tokens]) for stack, tokens in ids.items()})


def _plain(model: Model) -> Model:
    return dataclasses.replace(model, compute=model.compute.replace(attention="dot", remat="none"))


def _parts(sizes: Sizes, ids: Any) -> dict[str, Any]:
    ends = np.cumsum([size for _, size in sizes])
    return {stack: ids[end - size : end] for (stack, size), end in zip(sizes, ends, strict=True)}


def _batch(sizes: Sizes, ids: jax.Array) -> dict[str, jax.Array]:
    batch = {}
    for stack, tokens in _parts(sizes, ids).items():
        batch[f"{stack}_input_tokens"] = tokens[None]
        batch[f"{stack}_segment_ids"] = jnp.ones_like(tokens)[None]
    return batch


@functools.partial(jax.jit, static_argnums=(0, 1))
def _weights(model: Model, sizes: Sizes, params: Any, ids: jax.Array) -> Any:
    return jax.tree.map(lambda weights: weights[0], model.attention(params, _batch(sizes, ids)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _losses(
    model: Model,
    sizes: Sizes,
    params: Any,
    rows: jax.Array,
    row: jax.Array,
    positions: jax.Array,
    outputs: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns losses `[outputs]`, and the top probabilities and ids `[outputs, alternatives]`."""
    hidden = jax.lax.map(lambda ids: model.hidden(params, _batch(sizes, ids))[0][0], rows)
    logits = model.logits(params, hidden[row, positions][None])[0]
    count = min(_NUM_ALTERNATIVES, logits.shape[-1])
    probabilities, ids = jax.lax.top_k(jax.nn.softmax(logits), count)
    return -token_log_probabilities(logits, outputs), probabilities, ids


@functools.partial(jax.jit, static_argnums=(0, 1))
def _attribution(
    model: Model,
    sizes: Sizes,
    params: Any,
    rows: jax.Array,
    row: jax.Array,
    positions: jax.Array,
    outputs: jax.Array,
) -> jax.Array:
    num_inputs = rows.shape[1]
    # The same model with embedding tables that have a row for each input: the gradient by a table
    # is that by the inputs. Logits, which may share the true table, are computed apart.
    reader = dataclasses.replace(model, spec=model.spec.replace(vocab=num_inputs, start_id=0))
    names = [name for name in ("token_embedding", "encoder_embedding") if name in params]
    numbered = _batch(sizes, jnp.arange(num_inputs, dtype=jnp.int32))

    def contributions(prediction: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        row, position, output = prediction

        def log_probability(tables: Mapping[str, jax.Array]) -> jax.Array:
            replaced = {**params, **{name: {"embedding": tables[name]} for name in names}}
            hidden = reader.hidden(replaced, numbered)[0][:, position]
            return token_log_probabilities(model.logits(params, hidden[:, None])[0, 0], output)

        tables = {
            name: jnp.take(params[name]["embedding"], rows[row], axis=0).astype(jnp.float32)
            for name in names
        }
        gradients = jax.grad(log_probability)(tables)
        products = [jnp.sum(gradients[name] * tables[name], axis=-1) for name in names]
        return jnp.sum(jnp.stack(products), axis=0)

    return jax.lax.map(contributions, (row, positions, outputs))
