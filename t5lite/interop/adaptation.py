"""Adaptation of a checkpoint: a new model from a trained one."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from t5lite.data import Vocabulary, open_vocabulary
from t5lite.errors import InputError, check_value, option
from t5lite.interop.conversion import Progress, read_params
from t5lite.interop.description import Description
from t5lite.interop.huggingface.vocabularies import read_vocabulary
from t5lite.interop.opened import Opened
from t5lite.interop.opening import open_model
from t5lite.interop.save import check_target, save
from t5lite.models import ModelSpec
from t5lite.models import adapt as surgery

_NEEDS = {"top_k": "experts", "expert_layers": "experts", "start_id": "vocabulary"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptation:
    """Changes to a trained model, applied in the order of these fields.

    Args:
      vocabulary: path of the new vocabulary: a file, a run or a Hugging Face folder.
      start_id: the decoder's start token in it; None: the token with the same role.
      new_tokens: number of tokens added to the vocabulary.
      vectors: path of a text file of word vectors, which become embeddings.
      experts: number of experts that each selected MLP becomes.
      top_k: experts per token; None: 2.
      expert_layers: "alternate" or "all"; None: "alternate".
      encoder_decoder: whether the one stack becomes both encoder and decoder.
      decoder: folder of a model whose decoder is joined to the model's encoder (or decoder).
      cross_attention: "copied" from self-attention or "fresh"; None: copied of a decoder.
      seed: of drawn parameters.

    Raises: InputError for no change, values out of range, or changes that exclude each other.
    """

    vocabulary: str | None = None
    start_id: int | None = None
    new_tokens: int | None = None
    vectors: str | None = None
    experts: int | None = None
    top_k: int | None = None
    expert_layers: str | None = None
    encoder_decoder: bool = False
    decoder: str | None = None
    cross_attention: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not any(map(self.has, _STEPS)):
            names = ", ".join(map(option, _STEPS))
            raise InputError(f"nothing to adapt: give at least one of {names}")
        for name in ("experts", "top_k", "new_tokens"):
            if self.has(name):
                check_value(name, getattr(self, name), "integer in [1, inf)")
        if self.encoder_decoder and self.has("decoder"):
            self._refuse("decoder", f"is not for {option('encoder_decoder')}; leave one out")
        if self.has("cross_attention") and not (self.encoder_decoder or self.has("decoder")):
            self._refuse(
                "cross_attention", f"is for {option('encoder_decoder')} and {option('decoder')}"
            )
        if self.has("vocabulary") and self.has("new_tokens"):
            self._refuse(
                "new_tokens",
                f"extends the vocabulary that {option('vocabulary')} replaces: leave one out",
            )
        for name, change in _NEEDS.items():
            if self.has(name) and not self.has(change):
                self._refuse(name, f"is for {option(change)}")

    def has(self, name: str) -> bool:
        value = getattr(self, name)
        return value is not None and value is not False

    def _refuse(self, name: str, reason: str) -> None:
        raise InputError(f"{option(name)} {reason}", field=name)


class _Model(NamedTuple):
    spec: ModelSpec
    params: Any
    vocabulary: Vocabulary | None

    def __str__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return f"{self.spec.family}, {self.spec.topology}, {count:,} parameters"


class _Inputs(NamedTuple):
    """The files that changes name, without parameters; `dtype` is that of the decoder's."""

    vocabulary: Vocabulary | None
    vectors: Any
    decoder: Opened | None
    dtype: str | None


def adapt(
    source: str,
    target: str,
    changes: Adaptation,
    *,
    dtype: str | None = None,
    to: str = "t5lite",
    say: Callable[[str], object] = print,
    progress: Progress | None = None,
) -> None:
    """Initialises a model from a trained one: reads it, changes it, and writes it.

    Args:
      source: any folder or name that `open_model` opens.
      target: a folder, new or empty.
      dtype: of the parameters; None: as stored.
      to: the layout of `target`, see `save`.
      say, progress: see `convert`.
    Raises: InputError for a folder that cannot be opened or written, or a change that does not
      fit the model; files are checked before parameters are read.
    """
    check_target(target)
    opened = open_model(source)
    inputs = _read_inputs(changes, opened, source=source, dtype=dtype)
    params = read_params(opened, dtype=dtype, progress=progress)
    model = _Model(opened.spec, params, opened.vocabulary)
    say(f"{opened.folder}: {model}")
    keys = iter(jax.random.split(jax.random.key(changes.seed), len(_STEPS)))
    for name, apply in _STEPS.items():
        if changes.has(name):
            text, model = apply(changes, model, inputs, next(keys))
            say(f"{text}: {model}")
    save(
        target,
        _described(opened.description, model),
        model.params,
        kind=to,
        progress=progress and functools.partial(progress, "writing"),
    )
    say(f"written to {target}")


def _read_inputs(changes: Adaptation, opened: Opened, *, source: str, dtype: str | None) -> _Inputs:
    """Reads the files that changes name; InputError if one is missing, damaged or does not fit."""
    if changes.encoder_decoder and opened.spec.topology == "encoder_decoder":
        raise InputError(
            f"{option('encoder_decoder')}: {source} holds an encoder-decoder already",
            field="encoder_decoder",
        )
    if (changes.vocabulary or changes.vectors) and opened.vocabulary is None:
        raise InputError(f"{source} has no vocabulary, whose pieces this change needs")
    new = None if changes.vocabulary is None else read_new_vocabulary(changes.vocabulary)
    vectors = None if changes.vectors is None else surgery.vectors_from_text(changes.vectors)
    decoder = None if changes.decoder is None else open_model(changes.decoder)
    ours = new or opened.vocabulary
    theirs = None if decoder is None else decoder.vocabulary
    if ours is not None and theirs is not None and _pieces(ours) != _pieces(theirs):
        name = changes.vocabulary or source
        raise InputError(
            f"the vocabularies of {name} and {changes.decoder} differ, and a model has one: first "
            f"t5lite adapt {changes.decoder} NEW --vocabulary={name}",
            field="decoder",
        )
    return _Inputs(new, vectors, decoder, dtype)


def read_new_vocabulary(path: str) -> Vocabulary:
    """Returns the vocabulary in a file, a run, its `vocabulary/` or a Hugging Face folder."""
    folder = Path(path).expanduser()
    if (folder / "vocabulary" / "vocabulary.json").exists():
        folder = folder / "vocabulary"
    if not folder.is_dir() or (folder / "vocabulary.json").exists():
        return open_vocabulary(folder)
    vocabulary = read_vocabulary(folder)
    if vocabulary is None:
        raise InputError(
            f"{option('vocabulary', path)}: no tokenizer files in this folder", field="vocabulary"
        )
    return vocabulary


def _described(source: Description, model: _Model) -> Description:
    """Returns a model's description, with the parts of its source's that are still true."""
    description = Description(model.spec, model.vocabulary, origin=source.origin)
    if model.spec.heads == source.spec.heads:
        description = description.replace(labels=source.labels)
    if (model.spec.topology, model.vocabulary) == (source.spec.topology, source.vocabulary):
        description = description.replace(
            prompts=source.prompts, inputs=source.inputs, generation=source.generation
        )
    return description


# --- changes: each returns a few words and the changed model --------------------------------------


def _replace_vocabulary(
    changes: Adaptation, model: _Model, inputs: _Inputs, rng: jax.Array
) -> tuple[str, _Model]:
    old, new = model.vocabulary, inputs.vocabulary
    assert old is not None
    assert new is not None
    start_id = changes.start_id
    spec, params, counts = surgery.replace_vocabulary(
        model.spec,
        model.params,
        _pieces(old),
        _pieces(new),
        decompose=lambda piece: old.encode(  # without the signs that begin or continue words
            piece.removeprefix("##").replace("▁", " ").replace("Ġ", " ").strip()
        ),
        start_id=_same_role(model.spec.start_id, old, new) if start_id is None else start_id,
        rng=rng,
    )
    shares = ", ".join(f"{count:,} {origin}" for origin, count in counts.items())
    return f"vocabulary of {new.size:,} ids ({shares})", _Model(spec, params, new)


def _extend_vocabulary(
    changes: Adaptation, model: _Model, inputs: _Inputs, rng: jax.Array
) -> tuple[str, _Model]:
    del inputs
    assert changes.new_tokens is not None
    size = None if model.vocabulary is None else model.vocabulary.size
    spec, params = surgery.extend_vocabulary(
        model.spec, model.params, changes.new_tokens, num_pieces=size, rng=rng
    )
    return f"{changes.new_tokens:,} tokens more", _Model(spec, params, model.vocabulary)


def _set_vectors(
    changes: Adaptation, model: _Model, inputs: _Inputs, rng: jax.Array
) -> tuple[str, _Model]:
    del changes
    assert model.vocabulary is not None
    pieces = _pieces(model.vocabulary)
    spec, params, count = surgery.with_vectors(
        model.spec, model.params, pieces, inputs.vectors, rng=rng
    )
    text = f"{count:,} of {len(pieces):,} embeddings from vectors"
    return text, _Model(spec, params, model.vocabulary)


def _upcycle(
    changes: Adaptation, model: _Model, inputs: _Inputs, rng: jax.Array
) -> tuple[str, _Model]:
    del inputs
    assert changes.experts is not None
    spec, params = surgery.upcycle(
        model.spec,
        model.params,
        num_experts=changes.experts,
        top_k=changes.top_k or 2,
        layers=changes.expert_layers or "alternate",  # type: ignore[arg-type]
        rng=rng,
    )
    return f"{changes.experts} experts", _Model(spec, params, model.vocabulary)


def _to_encoder_decoder(
    changes: Adaptation, model: _Model, inputs: _Inputs, rng: jax.Array
) -> tuple[str, _Model]:
    del inputs
    spec, params = surgery.to_encoder_decoder(
        _with_start(model.spec, model.vocabulary),
        model.params,
        cross_attention=changes.cross_attention,  # type: ignore[arg-type]
        rng=rng,
    )
    return "an encoder-decoder of it", _Model(spec, params, model.vocabulary)


def _join_decoder(
    changes: Adaptation, model: _Model, inputs: _Inputs, rng: jax.Array
) -> tuple[str, _Model]:
    decoder = inputs.decoder
    assert decoder is not None
    spec, params = surgery.join(
        (model.spec, model.params),
        (
            _with_start(decoder.spec, decoder.vocabulary),
            read_params(decoder, dtype=inputs.dtype),
        ),
        cross_attention=changes.cross_attention or "fresh",  # type: ignore[arg-type]
        rng=rng,
    )
    vocabulary = model.vocabulary or decoder.vocabulary
    return f"with the decoder of {decoder.folder}", _Model(spec, params, vocabulary)


# By the change's field, in the order in which they are made.
_STEPS: dict[str, Callable[..., tuple[str, _Model]]] = {
    "vocabulary": _replace_vocabulary,
    "new_tokens": _extend_vocabulary,
    "vectors": _set_vectors,
    "experts": _upcycle,
    "encoder_decoder": _to_encoder_decoder,
    "decoder": _join_decoder,
}


def _with_start(spec: ModelSpec, vocabulary: Vocabulary | None) -> ModelSpec:
    if spec.start_id is not None:
        return spec
    ids = [getattr(vocabulary, name, None) for name in ("bos_id", "eos_id")]
    return spec.replace(start_id=next((token for token in ids if token is not None), 0))


def _pieces(vocabulary: Vocabulary) -> list[str]:
    """Returns the pieces of a vocabulary, ordered by id."""
    return [vocabulary.piece(index) for index in range(vocabulary.size)]


def _same_role(token_id: int | None, old: Vocabulary, new: Vocabulary) -> int | None:
    """Returns the token in `new` with the role of `token_id`; for None, the one before a text."""
    if token_id is None:
        return next(iter(new.frame.before), None)
    for role in ("bos_id", "pad_id", "eos_id"):
        token = getattr(new, role, None)
        if getattr(old, role, None) == token_id and token is not None and token >= 0:
            return token
    return None
