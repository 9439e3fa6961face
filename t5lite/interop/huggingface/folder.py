"""A Hugging Face folder as a model, and a model as a Hugging Face folder."""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t5lite.data import Vocabulary
from t5lite.data.files import write_whole
from t5lite.errors import InputError, unknown
from t5lite.interop.foreign import Foreign
from t5lite.interop.huggingface.families import MODULES, family_of, model_type_of
from t5lite.interop.huggingface.families.family import Family
from t5lite.interop.huggingface.files import local, open_tensors, write_tensors
from t5lite.interop.huggingface.vocabularies import read_vocabulary, write_vocabulary
from t5lite.interop.tensors import Source, Tensor, written
from t5lite.layers import EmbeddingHeadSpec
from t5lite.models import ModelSpec, differences

CONFIG = "config.json"
# What changes training or initialisation alone, and has no place in their configs.
_NOT_SAID = re.compile(r"embedding_stddev|(encoder|decoder)\.(stochastic_depth_rate|dropout_rate)")


def is_folder(folder: str | os.PathLike) -> bool:
    """Whether there is a `config.json`."""
    path = Path(folder)
    return (path / CONFIG).exists()


def open_model(folder: str | os.PathLike, *, vocabulary: Vocabulary | None = None) -> Foreign:
    """Opens a folder, reading its config and the headers of its tensors.

    Args:
      folder: with `config.json` and safetensors files; local.
      vocabulary: instead of the folder's own.

    Raises:
      InputError: no config, a `model_type` that is not known (those that are are listed), an
        architecture or option that is not, pickles, or damaged files.
    """
    root = local(folder)
    config = read_config(root)
    family = family_of(config["model_type"])
    source = _Renamed(open_tensors(root), family)
    spec = family.spec(config, source)
    if "embedding" not in {head.kind for head in spec.heads} and spec.decoder is None:
        spec = spec.replace(heads=(*spec.heads, *_sentence_heads(root)))
    return Foreign(
        spec,
        source,
        family.tensors(spec),
        where=str(folder),
        ignored=family.ignored,
        vocabulary=read_vocabulary(root) if vocabulary is None else vocabulary,
    )


def save(
    folder: str | os.PathLike,
    model: Any,
    params: Any,
    *,
    vocabulary: Vocabulary | None = None,
    max_file_bytes: int = 5_000_000_000,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes what transformers' `from_pretrained` opens: config, tensors and tokenizer files.

    Args:
      folder: local; made if need be. What it holds of an older model is replaced.
      model: a `Model`, or its spec.
      params: its parameters, sharded or not.
      vocabulary: of the token ids; None for no tokenizer files.
      max_file_bytes: of a file of tensors.
      progress: called with bytes written and bytes in all.

    Raises:
      InputError: if the spec's family has no Hugging Face class, or that class cannot express the
        spec (all differences are listed), or the folder cannot be written.
    """
    spec: ModelSpec = getattr(model, "spec", model)
    root = local(folder)
    plan = describe(spec)
    if vocabulary is not None:
        write_vocabulary(root, vocabulary, decoder=spec.topology == "decoder")
    tensors = written(params, plan.tensors)
    write_tensors(root, tensors, max_file_bytes=max_file_bytes, progress=progress)
    dtypes = {np.dtype(leaf.dtype).name for leaf in jax.tree.leaves(params)}
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    content = {**plan.config, "dtype": dtype, "torch_dtype": dtype}  # 5.x reads one, 4.x the other
    if vocabulary is not None:
        content["eos_token_id"] = vocabulary.eos_id
    # Last, so that a folder that has it is whole.
    write_whole(root / CONFIG, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
    heads = [head for head in spec.heads if isinstance(head, EmbeddingHeadSpec)]
    if heads:
        _write_sentence_files(root, heads[0], spec.embed)


class Plan:
    """How a spec is said in Hugging Face's terms.

    Args:
      config: the content of `config.json`.
      tensors: as they are named in the file.
    """

    def __init__(self, config: dict[str, Any], tensors: list[Tensor]):
        self.config, self.tensors = config, tensors


def describe(spec: ModelSpec) -> Plan:
    """Returns how a spec is written.

    Raises:
      InputError: see `save`.
    """
    if spec.family not in MODULES:
        raise unknown("ModelSpec.family, which names a model_type,", spec.family, MODULES)
    family = family_of(spec.family)
    for head in spec.heads:
        if isinstance(head, EmbeddingHeadSpec) and head.size is not None:
            raise InputError(_cannot(spec, "an embedding head with a layer of its own"))
    # Sentence embeddings have files of their own beside a model.
    plain = spec.replace(
        heads=tuple(head for head in spec.heads if not isinstance(head, EmbeddingHeadSpec))
    )
    try:
        config = family.config(plain)
        tensors = family.tensors(plain)
        again = family.spec(config, _StandIn(tensors))
    except (AssertionError, AttributeError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        what = "blocks, positions or heads of these kinds"
        raise InputError(_cannot(spec, what)) from error
    changed = [
        line for line in differences(plain, again) if not _NOT_SAID.fullmatch(line.split(":")[0])
    ]
    if changed:
        lines = [f"  {line.replace(' -> ', ' would become ')}" for line in changed[:8]]
        more = [f"  and {len(changed) - 8} more"] if len(changed) > 8 else []
        raise InputError("\n".join([_cannot(spec, "these values"), *lines, *more]))
    if config["architectures"] == [family.base]:
        tensors = [_without(tensor, family.prefix) for tensor in tensors]
    return Plan(config, tensors)


def read_config(folder: Path) -> dict[str, Any]:
    """Returns the content of a folder's `config.json`.

    Raises:
      InputError: if there is none, or it names no `model_type`.
    """
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
    return config


class _Renamed:
    """A folder's tensors by the names that a file of today with a head would have."""

    def __init__(self, source: Source, family: Family):
        names = {name: name for name in source.tensors()}
        for pattern, replacement in family.renamed:
            names = {re.sub(pattern, replacement, new): old for new, old in names.items()}
        if family.prefix and not any(name.startswith(family.prefix) for name in names):
            heads = ("lm_head.", "embed_out.", "cls.", "classifier.", "qa_outputs.")
            names = {
                new if new.startswith(heads) else family.prefix + new: old
                for new, old in names.items()
            }
        self._source, self._names = source, names

    def tensors(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        there = self._source.tensors()
        return {new: there[old] for new, old in self._names.items()}

    def read(self, name: str) -> np.ndarray:
        return self._source.read(self._names[name])


class _StandIn:
    """What a file will hold, before it is written: no two tensors are alike."""

    def __init__(self, tensors: list[Tensor]):
        self._shapes = {
            each.name: jax.ShapeDtypeStruct(each.shape, np.float32)
            for each in tensors
            if each.parts
        }

    def tensors(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        return self._shapes

    def read(self, name: str) -> np.ndarray:
        return np.array([list(self._shapes).index(name)])


def _without(tensor: Tensor, prefix: str) -> Tensor:
    return dataclasses.replace(
        tensor,
        name=tensor.name.removeprefix(prefix),
        aliases=tuple(alias.removeprefix(prefix) for alias in tensor.aliases),
    )


def _cannot(spec: ModelSpec, what: str) -> str:
    return (
        f"a model of family {spec.family!r} cannot be written as transformers' class of that name, "
        f"which has no place for {what}"
    )


def _sentence_heads(folder: Path) -> tuple[EmbeddingHeadSpec, ...]:
    """Returns the head that sentence-transformers' files beside a model describe, if any."""
    path = folder / "modules.json"
    if not path.exists():
        return ()
    try:
        modules = json.loads(path.read_bytes())
        kinds = {module["type"].rpartition(".")[2]: module for module in modules}
        if not set(kinds) <= {"Transformer", "Pooling", "Normalize"} or "Pooling" not in kinds:
            return ()  # a dense layer, say: what is left is the model without its head
        pooling = json.loads((folder / kinds["Pooling"]["path"] / CONFIG).read_bytes())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged: {error!r}; copy the folder again") from error
    modes = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "first",
        "pooling_mode_lasttoken": "last",
    }
    chosen = [mode for mode, on in pooling.items() if mode.startswith("pooling_mode_") and on]
    if len(chosen) != 1 or chosen[0] not in modes:
        return ()
    return (EmbeddingHeadSpec(pooling=modes[chosen[0]], normalized="Normalize" in kinds),)


def _write_sentence_files(folder: Path, head: EmbeddingHeadSpec, embed: int) -> None:
    """Writes what sentence-transformers reads of a head without a layer of its own."""
    package = "sentence_transformers.models"
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if head.normalized:
        modules.append(("2_Normalize", "Normalize"))
    content: Any = [
        {"idx": index, "name": str(index), "path": path, "type": f"{package}.{kind}"}
        for index, (path, kind) in enumerate(modules)
    ]
    mode = {"mean": "mean_tokens", "first": "cls_token", "last": "lasttoken"}[head.pooling]
    pooling = {"word_embedding_dimension": embed, f"pooling_mode_{mode}": True}
    for name in {"mean_tokens", "cls_token", "max_tokens"} - {mode}:
        pooling[f"pooling_mode_{name}"] = False
    write_whole(folder / "1_Pooling" / CONFIG, json.dumps(pooling, indent=2).encode())
    write_whole(folder / "modules.json", json.dumps(content, indent=2).encode())
