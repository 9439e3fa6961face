"""`t5lite adapt`: a trained model as the beginning of another one."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from t5lite.commands.bars import Bar
from t5lite.errors import InputError

if TYPE_CHECKING:
    from t5lite.configuration import Configuration


def run(arguments: argparse.Namespace, configuration: "Configuration") -> None:
    """Reads SOURCE, changes it as the flags say, the vocabulary first, and writes TARGET."""
    if configuration.source.bindings or configuration.source.macros:
        raise InputError("adapt reads no gin configuration; its flags say what to do")
    check(arguments)

    from t5lite import interop
    from t5lite.models import Model

    with Bar("reading") as bar:
        loaded = interop.load(arguments.source, dtype=arguments.dtype, progress=bar)
    print(f"{loaded.folder}: {described(loaded.spec, loaded.params)}")
    done = steps(arguments, loaded.spec, loaded.params, loaded.vocabulary)
    for text, spec, params, vocabulary in done:  # noqa: B007 - the last ones are saved
        print(f"{text}: {described(spec, params)}")
    interop.save(arguments.target, Model(spec), params, kind=arguments.to, vocabulary=vocabulary)
    print(f"written to {arguments.target}")


def check(arguments: argparse.Namespace) -> None:
    """Raises an InputError unless there is something to do, and flags go together."""
    does = ("encoder_decoder", "decoder", "experts", "vocabulary", "new_tokens", "vectors")
    if all(getattr(arguments, name) is None or not getattr(arguments, name) for name in does):
        flags = ", ".join(f"--{name}" for name in does)
        raise InputError(f"nothing to adapt: give at least one of {flags}")
    if arguments.encoder_decoder and arguments.decoder is not None:
        raise InputError("--encoder_decoder makes both halves of SOURCE: leave out --decoder")
    if arguments.cross_attention is not None and not (
        arguments.encoder_decoder or arguments.decoder
    ):
        raise InputError("--cross_attention is for --encoder_decoder and --decoder")
    if arguments.vocabulary is not None and arguments.new_tokens is not None:
        raise InputError("--new_tokens extends the vocabulary that --vocabulary replaces: give one")
    for name in ("top_k", "expert_layers"):
        if getattr(arguments, name) is not None and arguments.experts is None:
            raise InputError(f"--{name} is for --experts")


def steps(
    arguments: argparse.Namespace, spec: Any, params: Any, vocabulary: Any
) -> Iterator[tuple[str, Any, Any, Any]]:
    """Yields what was done, and the spec, parameters and vocabulary after it."""
    import jax

    from t5lite.models import adapt

    keys = iter(jax.random.split(jax.random.key(arguments.seed), 6))
    if arguments.vocabulary is not None:
        old, new = pieces(vocabulary, arguments.source), read_new(arguments.vocabulary)
        spec, params, counts = adapt.replace_vocabulary(
            spec,
            params,
            old,
            pieces(new, arguments.vocabulary),
            decompose=lambda piece: vocabulary.encode(plain(piece)),
            rng=next(keys),
        )
        vocabulary = new
        shares = ", ".join(f"{count:,} {how}" for how, count in counts.items())
        yield f"vocabulary of {new.size:,} ids ({shares})", spec, params, vocabulary
    if arguments.new_tokens is not None:
        size = None if vocabulary is None else vocabulary.size
        spec, params = adapt.extend_vocabulary(
            spec, params, arguments.new_tokens, num_pieces=size, rng=next(keys)
        )
        yield f"{arguments.new_tokens:,} tokens more", spec, params, vocabulary
    if arguments.vectors is not None:
        vectors = adapt.vectors_from_text(arguments.vectors)
        known = pieces(vocabulary, arguments.source)
        spec, params, found = adapt.with_vectors(spec, params, known, vectors, rng=next(keys))
        yield f"{found:,} of {len(known):,} embeddings from vectors", spec, params, vocabulary
    if arguments.experts is not None:
        spec, params = adapt.upcycle(
            spec,
            params,
            num_experts=arguments.experts,
            top_k=arguments.top_k or 2,
            layers=arguments.expert_layers or "alternate",
            rng=next(keys),
        )
        yield f"{arguments.experts} experts", spec, params, vocabulary
    if arguments.encoder_decoder:
        spec, params = adapt.to_encoder_decoder(
            spec, params, cross_attention=arguments.cross_attention, rng=next(keys)
        )
        yield "an encoder-decoder of it", spec, params, vocabulary
    if arguments.decoder is not None:
        from t5lite.interop import load

        second = load(arguments.decoder, dtype=arguments.dtype)
        spec, params = adapt.join(
            (spec, params),
            (second.spec, second.params),
            cross_attention=arguments.cross_attention or "fresh",
            rng=next(keys),
        )
        yield f"with the decoder of {second.folder}", spec, params, vocabulary


def described(spec: Any, params: Any) -> str:
    """Returns a model in a few words."""
    import jax

    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return f"{spec.family}, {spec.topology}, {count:,} parameters"


def pieces(vocabulary: Any, folder: str) -> list[str]:
    """Returns the pieces of a vocabulary in the order of their ids."""
    if vocabulary is None:
        raise InputError(f"{folder} has no vocabulary, whose pieces are needed for this")
    return [vocabulary.piece(index) for index in range(vocabulary.size)]


def plain(piece: str) -> str:
    """Returns a piece as text: without the signs that begin or continue words."""
    return piece.removeprefix("##").replace("▁", " ").replace("Ġ", " ").strip()


def read_new(path: str) -> Any:
    """Returns the vocabulary in a file, a run's `vocabulary/` or a Hugging Face folder."""
    from pathlib import Path

    from t5lite.data import open_vocabulary
    from t5lite.interop.huggingface.vocabularies import read_vocabulary

    folder = Path(path).expanduser()
    if not folder.is_dir() or (folder / "vocabulary.json").exists():
        return open_vocabulary(folder)
    found = read_vocabulary(folder)
    if found is None:
        raise InputError(f"--vocabulary={path}: there are no tokenizer files in this folder")
    return found
