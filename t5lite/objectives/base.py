"""The contract of objectives, and functions that they share.

An objective has a host half, which turns tokenised examples into batches with NumPy, and a device
half, which turns a batch into sums with JAX. It knows neither the data pipeline, which shuffles,
packs and pads between `prepare` and `batch`, nor the train step, which divides and differentiates.

Writing one takes a class. Deshuffling (Raffel et al. 2020, §3.3.1) maps inputs to targets, so that
batches for encoder-decoders and for decoders, loss and its options are inherited; all of it is:

    import dataclasses
    import numpy as np
    from t5lite.objectives import InputsToTargets

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Deshuffling(InputsToTargets):
        '''Predicts a text from its tokens in random order.'''

        def pairs(self, examples, *, lengths, vocabulary, rng):
            frames = self.frames(vocabulary)
            for example in examples:
                text = np.asarray(example["targets"], np.int32)[: lengths["targets"] - 1]
                yield {
                    "inputs": frames.inputs(rng.permutation(text), lengths["inputs"]),
                    "targets": frames.targets(text, lengths["targets"]),
                }

and in a config `t5lite.train.objective = @mine.Deshuffling()`. An objective of another kind extends
`TokenCrossEntropy` (tokens), `HeadObjective` (a head on an encoded text) or `Objective` itself.
"""

import dataclasses
import numbers
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.errors import InputError
from t5lite.framing import Frame
from t5lite.rows import Example, Examples, HostHalf, Lengths, RowSpec, feature_length

SIDES = ("encoder", "decoder")
Axes = dict[str, tuple[str | None, ...]]
Batch = Mapping[str, jax.Array]
Terms = dict[str, tuple[jax.Array, jax.Array]]
NOTHING: Mapping[str, Any] = types.MappingProxyType({})
_ANY_LENGTH = 2**16  # of rows whose kinds alone matter


class Vocabulary(Protocol):
    """The part of `data.Vocabulary` that objectives use."""

    @property
    def size(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def unk_id(self) -> int: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def mask_id(self) -> int | None: ...
    @property
    def num_sentinels(self) -> int: ...
    @property
    def frame(self) -> Frame: ...
    @property
    def target_frame(self) -> Frame: ...

    def sentinel(self, index: int) -> int: ...
    def piece(self, token_id: int) -> str: ...
    def decode(self, ids: Any) -> str: ...


class BareIds:
    """The vocabulary of data that are ids alone: EOS is 1, as in T5; no text, no sentinels."""

    pad_id, eos_id, num_sentinels = 0, 1, 0
    frame = target_frame = Frame(after=(1,))


class Model(Protocol):
    """The part of a model that objectives use: its kind, and pure functions of parameters."""

    @property
    def topology(self) -> str:
        """`encoder`, `decoder` or `encoder_decoder`."""

    @property
    def heads(self) -> Mapping[str, Any]:
        """The specs of its heads by kind."""

    def hidden(
        self, params: Any, batch: Batch, *, rngs: Any = None, train: bool = False
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Returns `[batch, length, embed]` before the output projection, and auxiliary losses."""

    def logits(self, params: Any, hidden: jax.Array) -> jax.Array:
        """Returns `[batch, length, vocab]` float32."""

    def output(
        self,
        params: Any,
        kind: str,
        hidden: jax.Array,
        valid: jax.Array,
        *,
        rngs: Any = None,
        train: bool = False,
    ) -> jax.Array:
        """Returns another head's output, float32; `valid` `[batch, length]` bool: true tokens."""


class IdLimit(NamedTuple):
    """How many ids an array of a batch may hold: `[0, size)`.

    `noun` is of the model's things that ids number, "embeddings" say; `fix` is for a larger id.
    """

    size: int
    noun: str
    fix: str


TOKENS = ("batch", "length")
_TOKEN_ARRAYS = ("input_tokens", "target_tokens", "loss_weights", "segment_ids")
_AXES: Axes = {
    **{f"{side}_{name}": TOKENS for side in SIDES for name in _TOKEN_ARRAYS},
    **dict.fromkeys(("encoder_lengths", "decoder_lengths"), ("batch",)),
    **dict.fromkeys(("encoder_target_positions", "decoder_causal_attention"), TOKENS),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(HostHalf):
    """Base of all objectives: the contract with the data pipeline and the train step.

    Class attributes, beside those of `HostHalf`:
      head: the kind of head that the loss needs, if any.
      min_rows: the fewest rows of a microbatch.
      streams: names of the random streams that `loss` draws from.
      refusals: the topologies that do not fit, each with the reason and a fix.

    Attributes:
      topology: of the model; set by `bind`.
      start_id: the token that a decoder reads first, None for that of the text itself; set by
        `bind` to the model's own.
      references: further models that the loss compares with, such as a teacher, not trained: folder
        or Hugging Face name by name, opened as `checkpoints.initial_checkpoint_path` is, or "start"
        for the parameters that the run starts from.
      reference_models: the models of the references, by name; set by `bind`.
    """

    head: ClassVar[str | None] = None
    min_rows: ClassVar[int] = 1
    streams: ClassVar[tuple[str, ...]] = ("dropout",)
    refusals: ClassVar[Mapping[str, str]] = NOTHING
    loss_fields: ClassVar[tuple[str, ...]] = ("start_id", "references", "reference_models")

    topology: str = "encoder_decoder"
    start_id: int | None = 0
    references: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    reference_models: Mapping[str, Any] = dataclasses.field(
        default_factory=dict, hash=False, repr=False
    )

    def rows(self, lengths: Lengths) -> dict[str, RowSpec]:
        return {name: RowSpec(feature_length(lengths, name)) for name in self.features}

    def axes(self) -> Axes:
        """Returns the logical axes of the arrays that a batch may have, by name."""
        return _AXES

    @property
    def token_arrays(self) -> tuple[str, ...]:
        """The segment ids of a batch whose entries above 0 count as tokens seen."""
        sides = SIDES if self.topology == "encoder_decoder" else (self.topology,)
        return tuple(f"{side}_segment_ids" for side in sides)

    def limits(self, model: Any) -> dict[str, IdLimit]:
        """Returns how many ids there are, for each array of a batch that holds some."""
        fix = "tokenise the data with the model's vocabulary"
        names = (f"{side}_{kind}_tokens" for side in SIDES for kind in ("input", "target"))
        return dict.fromkeys(names, IdLimit(model.limits["tokens"], "embeddings", fix))

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the divisor of each term's sum, from the whole global batch, on device.

        Terms without one are averaged over microbatches.
        """
        del batch
        return {}

    def loss(
        self,
        model: Model,
        params: Any,
        batch: Batch,
        *,
        frozen: Mapping[str, Any] = NOTHING,
        rngs: Mapping[str, jax.Array] = NOTHING,
        train: bool = False,
    ) -> tuple[Terms, Terms]:
        """Returns sums over some rows of a batch, on device.

        Sums, not means, so that microbatches and devices add up to the whole batch: the step
        minimises the sum of `coefficient * sum / weight` over terms.

        Args:
          model: pure functions of `params`.
          params: the model's parameters.
          batch: result of `batch`.
          frozen: parameters of the references by name, without gradients.
          rngs: a key for each of `streams`; in evaluation as well, where they are always the same.
          train: whether dropout is on.

        Returns:
          Terms `{name: (sum, coefficient)}` and metrics `{name: (sum, weight)}`, float32 scalars.
        """
        raise NotImplementedError(f"{type(self).__name__}.loss")

    def prompts(self, vocabulary: Any) -> Any:
        """Returns the `Prompts` of the trained model; None if it is not prompted."""
        del vocabulary
        return None

    def prompted(self, prompts: Any) -> Self:
        """Returns the objective whose decoder reads inputs as `prompts` say, if not None."""
        del prompts
        return self

    def show(self, example: Example, vocabulary: Any) -> list[str]:
        """Returns the texts of a prepared example for a person to read: one for each array.

        Arrays of kind `tokens` are decoded; other values are shown as numbers.
        """
        specs = self.rows(dict.fromkeys(self.features, _ANY_LENGTH))
        return [
            vocabulary.decode(np.asarray(values).tolist())
            if name in specs and specs[name].holds_ids
            else str(values)
            for name, values in example.items()
        ]

    @property
    def first_id(self) -> int | None:
        return self.start_id if self.head == "lm" and self.topology != "encoder" else None

    def alike(self, other: Any) -> Self:
        """Returns the objective for the model of `other`; raises InputError if they do not fit."""
        self._check_topology(other.topology)
        return dataclasses.replace(self, topology=other.topology, start_id=other.start_id)

    def _check_topology(self, topology: str) -> None:
        if topology in self.refusals:
            raise InputError(
                f"objective = {type(self).__name__}: does not fit the topology {topology!r}: "
                f"{self.refusals[topology]}",
                field="objective",
            )

    def bind(self, model: Model, references: Mapping[str, Any] = NOTHING) -> Self:
        """Returns the objective for a model's topology, and for the models of its references.

        Args:
          model: the model to train.
          references: models by name; where one is missing its parameters cannot be used. That of a
            "start" reference is the model itself.
        Raises: InputError if the topology does not fit, or the model lacks the head.
        """
        self._check_topology(model.topology)
        if self.head is not None and self.head not in model.heads:
            raise InputError(
                f"objective = {type(self).__name__}: needs a head of kind {self.head!r} and the "
                f"model has {', '.join(model.heads) or 'none'}: add "
                f"{HEADS.get(self.head, 'one')} to ModelSpec.heads",
                field="objective",
            )
        started = {name: model for name, path in self.references.items() if path == "start"}
        return dataclasses.replace(
            self,
            topology=model.topology,
            start_id=getattr(model, "start_id", self.start_id),
            reference_models=started | dict(references),
        )


HEADS = {  # by kind: the spec to recommend
    "lm": "layers.LMHeadSpec()",
    "classification": "layers.ClassificationHeadSpec(num_classes=...)",
    "regression": "layers.RegressionHeadSpec(num_targets=...)",
    "token_labels": "layers.TokenLabelsHeadSpec(num_labels=...)",
    "spans": "layers.SpansHeadSpec()",
    "embedding": "layers.EmbeddingHeadSpec()",
}


def bind(objective: Any, model: Model, references: Mapping[str, Any] = NOTHING) -> Any:
    """Returns `objective.bind(...)`; raises InputError, with a fix, if the two do not fit."""
    if not isinstance(objective, Objective):
        raise InputError(
            f"objective = {objective!r}: must be an objective; one of your own extends "
            "t5lite.objectives.Objective, or one of its subclasses",
            field="objective",
        )
    return objective.bind(model, references)


def expert_terms(aux: Mapping[str, jax.Array]) -> Terms:
    """Returns the auxiliary losses of `Model.hidden`, float32 scalars by name, as terms.

    They are means (see `layers.MoeSpec`), without weights: averaged over microbatches.
    """
    return {name: (value, jnp.float32(1)) for name, value in aux.items()}


def feature(example: Example, name: str, objective: object, advice: str) -> np.ndarray:
    """Returns an example's array; raises InputError with `advice` if it is missing."""
    if name not in example:
        raise InputError(
            f"{type(objective).__name__} needs the feature {name!r} and the task's examples have "
            f"{sorted(example)}; {advice}"
        )
    return np.asarray(example[name])


def known_vocabulary(vocabulary: Any) -> Any:
    """Returns the vocabulary, or `BareIds` where the data are ids alone."""
    return BareIds() if vocabulary is None else vocabulary


def unpadded(tokens: np.ndarray, vocabulary: Vocabulary | None) -> np.ndarray:
    """Returns `[n]` int32: an example's tokens without padding at their end."""
    tokens = np.asarray(tokens, np.int32)
    if tokens.size and tokens[-1] == (pad_id := known_vocabulary(vocabulary).pad_id):
        ordinary = np.flatnonzero(tokens != pad_id)
        tokens = tokens[: ordinary[-1] + 1] if ordinary.size else tokens[:0]
    return tokens


def unended(tokens: np.ndarray, vocabulary: Vocabulary | None) -> np.ndarray:
    """Returns `[n]` int32: an example's text without padding and a final EOS."""
    tokens, eos_id = unpadded(tokens, vocabulary), known_vocabulary(vocabulary).eos_id
    return tokens[:-1] if tokens.size and tokens[-1] == eos_id else tokens


def documents(
    examples: Examples, objective: object, vocabulary: Vocabulary | None
) -> Iterator[np.ndarray]:
    """Yields each example's `targets` `[n]` int32, without padding and a final EOS."""
    pad_id, eos_id = (getattr(known_vocabulary(vocabulary), name) for name in ("pad_id", "eos_id"))
    for example in examples:
        tokens = feature(example, "targets", objective, "name the text's feature 'targets'")
        tokens = np.asarray(tokens, np.int32)
        tokens = tokens[tokens != pad_id]
        yield tokens[:-1] if tokens.size and tokens[-1] == eos_id else tokens


def check_number(owner: object, name: str, valid: Callable[[Any], bool], allowed: str) -> None:
    """Raises InputError unless a dataclass's field is a number, not a bool, and `valid`."""
    value = getattr(owner, name)
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not valid(value):
        field = f"{type(owner).__name__}.{name}"
        raise InputError(f"{field} is {value!r}: it must be {allowed}", field=field)
