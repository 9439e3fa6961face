"""A Hugging Face folder as a model, and a model as a Hugging Face folder."""

import json
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from t5lite.data import Vocabulary
from t5lite.data.input_format import AMONG_OTHERS, load_input_format, save_input_format
from t5lite.data.paths import as_path, write_whole
from t5lite.errors import InputError
from t5lite.framing import Frame
from t5lite.interop.adapters import check_merged
from t5lite.interop.description import Description
from t5lite.interop.embedding_defaults import EmbeddingDefaults
from t5lite.interop.finite import stays_float32
from t5lite.interop.foreign import ForeignCheckpoint
from t5lite.interop.generation_defaults import GenerationDefaults, read_defaults, save_defaults
from t5lite.interop.huggingface.describing import Plan, agrees, describe
from t5lite.interop.huggingface.families import MODULES, family_of, model_type_of
from t5lite.interop.huggingface.families.family import Family
from t5lite.interop.huggingface.families.labels import labels_of, named_labels
from t5lite.interop.huggingface.files import INDEX, WEIGHTS, local, open_tensors, write_tensors
from t5lite.interop.huggingface.sentence_files import (
    all_dense_tensors,
    read_sentences,
    transformer_folder,
    with_dense,
    write_sentences,
)
from t5lite.interop.huggingface.vocabularies import read_vocabulary
from t5lite.interop.huggingface.written_tokenizers import write_vocabulary
from t5lite.interop.origin import CONFIG, GENERATION, Origin, merged, same_vocabulary
from t5lite.interop.tensors import Arrays, Source, tensors_from
from t5lite.layers import EmbeddingHeadSpec
from t5lite.models import ModelSpec
from t5lite.objectives import Prompts, frames_of
from t5lite.training.restore import named

# What names of heads' tensors begin with.
_HEADS = (
    *("lm_head.", "embed_out.", "cls.", "score.", "qa_outputs."),
    *("classifier.", "pre_classifier."),
)
_POSITIONS = "max_position_embeddings"


def is_folder(folder: str | os.PathLike) -> bool:
    """Whether there is a `config.json`, or a `modules.json` that locates one."""
    return (transformer_folder(folder) / CONFIG).exists()


def has_weights(folder: str | os.PathLike) -> bool:
    """Whether there are a model's tensors, or an index of them."""
    root = transformer_folder(folder)
    return any((root / name).exists() for name in (WEIGHTS, INDEX))


def open_model(
    folder: str | os.PathLike, *, vocabulary: Vocabulary | None = None
) -> ForeignCheckpoint:
    """Opens a folder, reading its config and the headers of its tensors.

    Args:
      folder: with `config.json` and safetensors files; local or remote.
      vocabulary: instead of the folder's own.

    Raises: InputError for a missing config, an unknown `model_type` (the known ones are listed), an
      unknown architecture or option, pickles, or damaged files.
    """
    outer = as_path(folder)
    root, sentences = transformer_folder(outer), read_sentences(outer)
    config = read_config(root)
    family = family_of(config["model_type"])
    generation = read_defaults(root, config)
    start = None if generation is None else generation.content.get("decoder_start_token_id")
    if isinstance(start, int):  # transformers' generate reads it there alone
        config = {**config, "decoder_start_token_id": start}
    tensors = open_tensors(root)
    check_merged(tensors.tensors(), where=str(folder))
    source = _renamed(tensors, family)
    try:
        spec = family.spec(config, source)
    except InputError as error:
        raise InputError(f"{error}; correct {root / CONFIG}", field=error.field) from error
    tokenizer = None
    if vocabulary is None:
        tokenizer = read_vocabulary(root, lowercase=sentences.lowercase)
    if spec.topology == "decoder" and tokenizer is not None:
        # A text begins as the tokenizer says, with BOS or without, whatever the config has.
        spec = spec.replace(start_id=next(iter(tokenizer.frame.before), None))
    if spec.topology != "encoder_decoder":
        spec = spec.replace(heads=(*spec.heads, *sentences.heads))
        source = with_dense(source, sentences.dense)
    description = Description(
        spec,
        tokenizer if vocabulary is None else vocabulary,
        labels=labels_of(config, spec),
        prompts=_prompts(spec, tokenizer),
        inputs=load_input_format(outer, name=AMONG_OTHERS),
        generation=None if spec.decoder is None else generation,
        embedding=sentences.defaults,
        origin=Origin(root),
    )
    return ForeignCheckpoint(
        "huggingface",
        description,
        source,
        [*family.tensors(spec), *all_dense_tensors(spec.heads, spec.embed)],
        folder=str(folder),
        ignored=family.ignored,
    )


def _prompts(spec: ModelSpec, vocabulary: Vocabulary | None) -> Prompts | None:
    """Returns the prompts of a decoder whose tokenizer ends texts; None otherwise."""
    if spec.topology != "decoder" or vocabulary is None:
        return None
    if not vocabulary.frame.after and len(vocabulary.frame.before) < 2:
        return None
    return Prompts("inputs", *frames_of(vocabulary, topology=spec.topology, start_id=spec.start_id))


def save(
    folder: str | os.PathLike,
    description: Description,
    params: Any,
    *,
    max_file_bytes: int = 5_000_000_000,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes what transformers' `from_pretrained` opens: config, tensors and tokenizer files.

    Args:
      folder: local; created if need be. An older model in it is replaced.
      description: of the model. Files of its origin that still hold are written unchanged; see
        `losses`. Its prompts become the tokenizer's template.
      max_file_bytes: of a file of tensors.
      progress: called with bytes written and bytes in all.

    Raises: InputError for a spec whose family has no Hugging Face class, or which that class cannot
      express (all differences are listed), or a folder that cannot be written.
    """
    root = local(folder)
    spec, vocabulary = description.spec, description.vocabulary
    plan, description = describe(spec), _with_related_origin(description)
    origin, generation = description.origin, description.generation
    content = _content(description, plan)
    frame = None if vocabulary is None else _frame(spec, vocabulary, description.prompts)
    if (
        content.same_vocabulary
        and origin is not None
        and (vocabulary is None or vocabulary.frame == frame)
    ):
        origin.copy(root, origin.tokenizer_files())
    elif vocabulary is not None:
        write_vocabulary(root, vocabulary, frame=frame)
    # Layers of sentence embeddings have files of their own.
    inner = {name: part for name, part in params.items() if name != "embedding_head"}
    tensors = tensors_from(inner, plan.tensors)
    write_tensors(root, tensors, max_file_bytes=max_file_bytes, progress=progress)
    dtypes = {
        np.dtype(leaf.dtype).name
        for path, leaf in named(params).items()
        if not stays_float32(spec.family, path, np.float16)
    } or {"float32"}
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    heads = [head for head in spec.heads if isinstance(head, EmbeddingHeadSpec)]
    if heads and origin is not None and _same_sentences(origin, heads, description.embedding):
        origin.copy(root, origin.sentence_files())
    elif heads:
        write_sentences(root, heads[0], params, embed=spec.embed, defaults=description.embedding)
    if origin is not None and (
        spec.decoder is None or generation == read_defaults(origin.folder, origin.config())
    ):
        origin.copy(root, [name for name in origin.names() if name == GENERATION])
    else:
        save_defaults(root, _never_padding(generation, content.config, spec, vocabulary))
    save_input_format(root, description.inputs, name=AMONG_OTHERS)
    config = {**content.config, "dtype": dtype, "torch_dtype": dtype}  # 5.x and 4.x
    # Last, so that a folder that has it is whole.
    write_whole(root / CONFIG, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())


def _never_padding(
    generation: GenerationDefaults | None,
    config: Mapping[str, Any],
    spec: ModelSpec,
    vocabulary: Vocabulary | None,
) -> GenerationDefaults | None:
    """Returns generation options that suppress the ids above the vocabulary, padding rows.

    t5lite never generates them; transformers does unless they are suppressed by name.
    """
    padding = range(spec.vocab if vocabulary is None else vocabulary.size, spec.vocab)
    if not padding or spec.decoder is None or "lm" not in {head.kind for head in spec.heads}:
        return generation
    if generation is None:  # the file replaces the fields in config.json
        fields = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
        ids = {name: config[name] for name in fields if config.get(name) is not None}
        generation = GenerationDefaults(ids)
    suppressed = sorted({*generation.ids("suppress_tokens"), *padding})
    return GenerationDefaults({**generation.content, "suppress_tokens": suppressed})


def losses(description: Description) -> list[str]:
    """Returns the parts of a description that `save` cannot express, one line each."""
    description = _with_related_origin(description)
    spec, vocabulary, origin = description.spec, description.vocabulary, description.origin
    content = _content(description, describe(spec))
    lines = []
    pools = any(head.kind in ("classification", "regression") for head in spec.heads)
    if spec.topology == "decoder" and pools and content.config.get("pad_token_id") is None:
        lines.append(
            "pad_token_id: the vocabulary has no padding token, without which transformers takes "
            "texts one by one"
        )
    if origin is None:
        blocks = () if spec.decoder is None else spec.decoder.every_block
        rotary = any(block.attention.rotary is not None for block in blocks)
        if rotary and _POSITIONS not in content.config:
            lines.append(f"{_POSITIONS}: not known, so that transformers takes its class's default")
        return lines
    if content.lost:
        lines.append(f"{CONFIG}: {', '.join(sorted(content.lost))}")
    if not content.same_vocabulary:
        lines += [f"{name}: the vocabulary is another" for name in origin.tokenizer_files()]
    elif vocabulary is not None:
        with warnings.catch_warnings():  # `save` says it
            warnings.simplefilter("ignore")
            framed = vocabulary.frame == _frame(spec, vocabulary, description.prompts)
        why = "replaced by one with the special tokens that texts had in training"
        lines += [] if framed else [f"{name}: {why}" for name in origin.tokenizer_files()]
    if not any(isinstance(head, EmbeddingHeadSpec) for head in spec.heads):
        lines += [
            f"{name}: the model has no head for embeddings" for name in origin.sentence_files()
        ]
    return lines


class _Content(NamedTuple):
    """The content of a folder that is about to be written.

    Attributes:
      config: of `config.json`, except for dtypes.
      same_vocabulary: whether the origin's tokenizer files are those of the vocabulary.
      lost: fields of the origin's `config.json` that are not in it.
    """

    config: dict[str, Any]
    same_vocabulary: bool
    lost: list[str]


def _content(description: Description, plan: Plan) -> _Content:
    spec, vocabulary, origin = description.spec, description.vocabulary, description.origin
    config = dict(plan.config)
    if vocabulary is not None:
        config["eos_token_id"] = vocabulary.eos_id
        if spec.start_id is None:
            config["bos_token_id"] = vocabulary.bos_id
        if config.get("pad_token_id") is None and vocabulary.pad_id >= 0:
            config["pad_token_id"] = vocabulary.pad_id
    same, lost = False, list[str]()
    if origin is not None:
        same = same_vocabulary(origin, vocabulary, read_vocabulary)
        ids = same or vocabulary is None
        config, lost = merged(config, origin.config(), agrees=agrees(spec, plan), ids=ids)
    return _Content(config | named_labels(config, description.labels), same, lost)


def _with_related_origin(description: Description) -> Description:
    """Returns a description, without its origin if the model's family has changed."""
    origin = description.origin
    if origin is None or origin.config().get("model_type") == description.spec.family:
        return description
    return description.replace(origin=None)


def _same_sentences(
    origin: Origin, heads: Sequence[EmbeddingHeadSpec], embedding: EmbeddingDefaults | None
) -> bool:
    """Whether an origin's files of sentence-transformers are those of a head without layers."""
    sentences = read_sentences(origin.folder)
    if sentences.lowercase or sentences.dense:
        return False
    return (sentences.heads, sentences.defaults) == (tuple(heads), embedding)


def _frame(spec: ModelSpec, vocabulary: Vocabulary, prompts: Prompts | None) -> Frame:
    """Returns the special tokens around a text that the model reads, a start token included."""
    writes = any(head.kind == "lm" for head in spec.heads) or not spec.heads
    if spec.topology == "encoder" or not writes:  # heads on whole texts see this frame
        return vocabulary.frame
    if prompts is None:
        prompts = Prompts.by_default(vocabulary, topology=spec.topology, start_id=spec.start_id)
    read = prompts.of(None)
    if spec.topology == "decoder" and read.bidirectional:
        warnings.warn(
            "the model was trained to see its inputs in both directions, which transformers' "
            "classes do not: there it reads them from left to right",
            stacklevel=3,
        )
    if spec.topology == "encoder_decoder" or spec.start_id is None:
        return read.inputs
    return Frame((spec.start_id, *read.inputs.before), read.inputs.after)


def read_config(folder: Any) -> dict[str, Any]:
    """Returns a folder's `config.json`; InputError if absent or of an unknown `model_type`."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged: {str(error)[:80]}; copy it again") from error
    if isinstance(config, dict) and config.get("model_type") is None:
        classes = [model_type_of(str(name)) for name in config.get("architectures") or ()]
        config["model_type"] = classes[0] if classes else None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InputError(f"{path} names no model_type; is this a Hugging Face folder?")
    if config["model_type"] not in MODULES:
        raise InputError(
            f"{path}: unknown model_type {config['model_type']!r}; "
            f"known: {', '.join(sorted(MODULES))}"
        )
    return config


def _renamed(source: Source, family: Family) -> Source:
    """Returns a folder's tensors under the current names in a file of a model with a head."""
    stored = source.tensors()
    names = {name: name for name in stored}
    for pattern, replacement in family.renamed:
        names = {re.sub(pattern, replacement, new): old for new, old in names.items()}
    if family.prefix and not any(name.startswith(family.prefix) for name in names):
        names = {
            new if new.startswith(_HEADS) else family.prefix + new: old
            for new, old in names.items()
        }
    shapes = {new: stored[old] for new, old in names.items()}
    return Arrays(shapes, lambda name: source.read(names[name]))
