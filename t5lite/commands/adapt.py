"""`t5lite adapt`: initialises one model from another: topology, experts, vocabulary."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from t5lite.errors import InputError

if TYPE_CHECKING:
    from t5lite.configuration import Configuration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what is to become of what."""
    parser.epilog = (
        "example: t5lite adapt gemma-2-2b t5gemma --encoder_decoder; what is not asked for stays"
    )
    parser.add_argument("source", metavar="SOURCE", help="any folder that t5lite.load opens")
    parser.add_argument("target", metavar="TARGET", help="a folder that is new or empty")
    parser.add_argument(
        "--encoder_decoder",
        action="store_true",
        help="make encoder and decoder of the one stack (T5Gemma; of an encoder BERT2BERT)",
    )
    parser.add_argument(
        "--decoder", metavar="DIR", help="SOURCE's encoder (or decoder) reads, DIR's decoder writes"
    )
    parser.add_argument(
        "--cross_attention",
        choices=("copied", "fresh"),
        help="from self-attention, or drawn (copied of a decoder; otherwise fresh)",
    )
    parser.add_argument(
        "--experts",
        type=int,
        metavar="N",
        help="turn each selected MLP into N experts (sparse upcycling)",
    )
    parser.add_argument("--top_k", type=int, metavar="K", help="experts per token (2)")
    parser.add_argument(
        "--expert_layers",
        choices=("alternate", "all"),
        help="layers whose MLPs become experts (alternate)",
    )
    parser.add_argument(
        "--vocabulary",
        metavar="PATH",
        help="replace the vocabulary: a tokenizer.json, vocab.txt, SentencePiece model or folder",
    )
    parser.add_argument(
        "--start_id",
        type=int,
        metavar="ID",
        help="decoder start token id (default: the token with the same role in the new vocabulary)",
    )
    parser.add_argument(
        "--new_tokens", type=int, metavar="N", help="add N tokens to the vocabulary and embeddings"
    )
    parser.add_argument(
        "--vectors", metavar="FILE", help="embeddings from a text file of word2vec or GloVe"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of parameters that are drawn (0)"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the parameters (as stored)"
    )
    parser.add_argument(
        "--to",
        choices=("t5lite", "huggingface"),
        default="t5lite",
        help="the layout of TARGET (t5lite)",
    )


def run(arguments: argparse.Namespace, configuration: "Configuration") -> None:
    """Reads SOURCE, changes it as the flags say, the vocabulary first, and writes TARGET."""
    if configuration.source.bindings or configuration.source.macros:
        raise InputError("adapt reads no gin configuration; its flags say what to do")
    check(arguments)

    from t5lite import interop
    from t5lite.inference.loaded import place
    from t5lite.reporting.bars import Bar

    # All that can be wrong with files, before parameters are read.
    interop.check_target(arguments.target)
    opened = interop.open_model(arguments.source)
    inputs = read_inputs(arguments, opened)
    with Bar("reading") as bar:
        loaded = place(opened, dtype=arguments.dtype, progress=bar)
    print(f"{loaded.folder}: {described(loaded.spec, loaded.params)}")
    done = steps(arguments, loaded.spec, loaded.params, loaded.vocabulary, inputs)
    for text, spec, params, vocabulary in done:  # noqa: B007 - the last ones are saved
        print(f"{text}: {described(spec, params)}")
    old = opened.description
    description = interop.Description(spec, vocabulary, origin=old.origin)
    if spec.heads == old.spec.heads:
        description = description.replace(labels=old.labels)
    if (spec.topology, vocabulary) == (old.spec.topology, old.vocabulary):
        description = description.replace(
            prompts=old.prompts, inputs=old.inputs, generation=old.generation
        )
    with Bar("writing") as bar:
        interop.save(arguments.target, description, params, kind=arguments.to, progress=bar)
    print(f"written to {arguments.target}")


def check(arguments: argparse.Namespace) -> None:
    """Raises an InputError unless there is something to do, and flags go together."""
    does = ("encoder_decoder", "decoder", "experts", "vocabulary", "new_tokens", "vectors")
    given = {name: getattr(arguments, name) for name in does}
    if all(value is None or value is False for value in given.values()):
        flags = ", ".join(f"--{name}" for name in does)
        raise InputError(f"nothing to adapt: give at least one of {flags}")
    for name in ("experts", "top_k", "new_tokens"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise InputError(f"--{name}={value}: must be at least 1")
    if arguments.encoder_decoder and arguments.decoder is not None:
        raise InputError("--encoder_decoder makes both halves of SOURCE: leave out --decoder")
    if arguments.cross_attention is not None and not (
        arguments.encoder_decoder or arguments.decoder
    ):
        raise InputError("--cross_attention is for --encoder_decoder and --decoder")
    if arguments.vocabulary is not None and arguments.new_tokens is not None:
        raise InputError("--new_tokens extends the vocabulary that --vocabulary replaces: give one")
    for name, of in (
        ("top_k", "experts"),
        ("expert_layers", "experts"),
        ("start_id", "vocabulary"),
    ):
        if getattr(arguments, name) is not None and getattr(arguments, of) is None:
            raise InputError(f"--{name} is for --{of}")


class Inputs(NamedTuple):
    """What is read besides SOURCE.

    Args:
      vocabulary: the new one.
      vectors: of words.
      decoder: the opened model of `--decoder`.
    """

    vocabulary: Any
    vectors: Any
    decoder: Any


def read_inputs(arguments: argparse.Namespace, found: Any) -> Inputs:
    """Reads what the flags name, but no parameters, and raises an InputError if it does not go
    with the opened SOURCE."""
    from t5lite.interop import open_model
    from t5lite.models.adapt import vectors_from_text

    if arguments.encoder_decoder and found.spec.topology == "encoder_decoder":
        raise InputError(f"--encoder_decoder: {arguments.source} holds an encoder-decoder already")
    if arguments.vocabulary is not None or arguments.vectors is not None:
        pieces(found.vocabulary, arguments.source)
    new = None if arguments.vocabulary is None else read_new(arguments.vocabulary)
    vectors = None if arguments.vectors is None else vectors_from_text(arguments.vectors)
    decoder = None if arguments.decoder is None else open_model(arguments.decoder)
    ours = found.vocabulary if new is None else new
    theirs = None if decoder is None else decoder.vocabulary
    if ours is not None and theirs is not None:
        names = arguments.vocabulary or arguments.source, arguments.decoder
        if pieces(ours, names[0]) != pieces(theirs, names[1]):
            raise InputError(
                f"the vocabularies of {names[0]} and {names[1]} differ, and a model has one: first "
                f"t5lite adapt {names[1]} NEW --vocabulary={names[0]}"
            )
    return Inputs(new, vectors, decoder)


def steps(
    arguments: argparse.Namespace, spec: Any, params: Any, vocabulary: Any, inputs: Inputs
) -> Iterator[tuple[str, Any, Any, Any]]:
    """Yields what was done, and the spec, parameters and vocabulary after it."""
    import jax

    from t5lite.models import adapt

    keys = iter(jax.random.split(jax.random.key(arguments.seed), 6))
    if inputs.vocabulary is not None:
        old, new = vocabulary, inputs.vocabulary
        start_id = arguments.start_id
        spec, params, counts = adapt.replace_vocabulary(
            spec,
            params,
            pieces(old, arguments.source),
            pieces(new, arguments.vocabulary),
            decompose=lambda piece: old.encode(plain(piece)),
            start_id=same_role(spec.start_id, old, new) if start_id is None else start_id,
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
    if inputs.vectors is not None:
        known = pieces(vocabulary, arguments.source)
        spec, params, count = adapt.with_vectors(
            spec, params, known, inputs.vectors, rng=next(keys)
        )
        yield f"{count:,} of {len(known):,} embeddings from vectors", spec, params, vocabulary
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
        spec = started(spec, vocabulary)
        spec, params = adapt.to_encoder_decoder(
            spec, params, cross_attention=arguments.cross_attention, rng=next(keys)
        )
        yield "an encoder-decoder of it", spec, params, vocabulary
    if inputs.decoder is not None:
        from t5lite.inference.loaded import place

        second = place(inputs.decoder, dtype=arguments.dtype)
        spec, params = adapt.join(
            (spec, params),
            (started(second.spec, second.vocabulary), second.params),
            cross_attention=arguments.cross_attention or "fresh",
            rng=next(keys),
        )
        if vocabulary is None:
            vocabulary = second.vocabulary
        yield f"with the decoder of {second.folder}", spec, params, vocabulary


def started(spec: Any, vocabulary: Any) -> Any:
    """Returns a spec whose decoder reads a token first, as that of an encoder-decoder must."""
    if spec.start_id is not None:
        return spec
    ids = [getattr(vocabulary, name, None) for name in ("bos_id", "eos_id")]
    return spec.replace(start_id=next((token for token in ids if token is not None), 0))


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


def same_role(token_id: int | None, old: Any, new: Any) -> int | None:
    """Returns what is to one vocabulary as an id is to another; None if that is nothing special.

    To nothing, None, corresponds what the other vocabulary adds in front of a text, if anything.
    """
    if token_id is None:
        return next(iter(new.frame.before), None)
    for role in ("bos_id", "pad_id", "eos_id"):
        found = getattr(new, role, None)
        if getattr(old, role, None) == token_id and found is not None and found >= 0:
            return found
    return None


def plain(piece: str) -> str:
    """Returns a piece as text: without the signs that begin or continue words."""
    return piece.removeprefix("##").replace("▁", " ").replace("Ġ", " ").strip()


def read_new(path: str) -> Any:
    """Returns the vocabulary in a file, a run, its `vocabulary/` or a Hugging Face folder."""
    from pathlib import Path

    from t5lite.data import open_vocabulary
    from t5lite.interop.huggingface.vocabularies import read_vocabulary

    folder = Path(path).expanduser()
    if (folder / "vocabulary" / "vocabulary.json").exists():
        folder = folder / "vocabulary"
    if not folder.is_dir() or (folder / "vocabulary.json").exists():
        return open_vocabulary(folder)
    found = read_vocabulary(folder)
    if found is None:
        raise InputError(f"--vocabulary={path}: there are no tokenizer files in this folder")
    return found
