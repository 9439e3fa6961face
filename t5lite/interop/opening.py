"""Opens any checkpoint folder: t5lite's own, Hugging Face's or T5X's, without a configuration."""

import dataclasses
import os
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath

from t5lite.data import Vocabulary, load_vocabulary
from t5lite.data.input_format import AMONG_OTHERS, InputFormat, load_input_format
from t5lite.data.labels import Labels, load_labels
from t5lite.errors import InputError
from t5lite.interop import huggingface, t5x
from t5lite.interop.adapters import check_adapter, is_adapter
from t5lite.interop.embedding_defaults import EmbeddingDefaults, read_embedding
from t5lite.interop.finite import fault, leaf_is_finite, stays_float32
from t5lite.interop.foreign import Foreign
from t5lite.interop.generation_defaults import GenerationDefaults, read_defaults
from t5lite.interop.hub import check_revision, from_hub, split_name
from t5lite.interop.prompts import read_prompts
from t5lite.models import Model, ModelSpec, load_spec, reads_folders
from t5lite.objectives import Prompts
from t5lite.parallel import Layout, shardings
from t5lite.training.restore import (
    absolute,
    find_step_folder,
    load_params,
    named,
    read_arrays,
    saved_arrays,
    saved_steps,
)


def open_model(
    folder: epath.PathLike,
    *,
    vocabulary: Vocabulary | None = None,
    spec: ModelSpec | None = None,
    revision: str | None = None,
) -> "Foreign | Own":
    """Reads what a folder holds, but for its arrays; the arguments are those of `t5lite.load`."""
    kind, path = kind_of(folder, revision=revision)
    if spec is not None and kind != "t5x":
        raise InputError(f"spec = …: is for T5X checkpoints alone, and {path} says what it holds")
    if kind == "huggingface":
        inputs = load_input_format(path, name=AMONG_OTHERS)
        return huggingface.open_model(path, vocabulary=vocabulary).replace(inputs=inputs)
    if kind == "t5x":
        return t5x.open_model(path, spec=spec).replace(vocabulary=vocabulary)
    found = locate(path)
    if vocabulary is None and (found.home / "vocabulary").exists():
        vocabulary = load_vocabulary(found.home / "vocabulary")
    spec, labels = load_spec(found.home / "model.json"), load_labels(found.home)
    prompts = read_prompts(found.home, vocabulary, topology=spec.topology)
    generation = None if spec.decoder is None else read_defaults(found.home)
    inputs = load_input_format(found.home)
    embedding = read_embedding(found.home)
    return Own(spec, found, vocabulary, labels, prompts, generation, inputs, embedding)


@reads_folders
def spec_of(folder: str) -> ModelSpec:
    """Returns the architecture of a folder, for `models.named_spec`."""
    return open_model(folder).spec


def kind_of(folder: epath.PathLike, *, revision: str | None = None) -> tuple[str, str]:
    """Returns what a folder is, "t5lite", "huggingface" or "t5x", and where it is.

    Args:
      folder: or `ORGANISATION/NAME[@REVISION]` of the Hugging Face hub, which is downloaded.
      revision: of a name of the hub; None for its own, or the default branch.

    Raises:
      InputError: if there is none, or it is none of these.
    """
    path = absolute(folder)
    if not _exists(path):
        return "huggingface", _downloaded(os.fspath(folder), revision)
    check_revision(folder, revision)
    if not path.is_dir():
        raise InputError(f"{path} is a file; give the folder that it lies in")
    # Folders of the others may lie inside a run's.
    if (path / "model.json").exists():
        return "t5lite", str(path)
    if huggingface.is_folder(path):
        check_adapter(path, weights=huggingface.has_weights(path))
        return "huggingface", str(path)
    # One step of a run has a `state` as T5X's Orbax output does, and `progress` beside it.
    if saved_steps(path) or (path / "progress").exists():
        return "t5lite", str(path)
    check_adapter(path, weights=False)
    if t5x.find_checkpoint(path) is not None:
        return "t5x", str(path)
    raise InputError(_nothing(path))


def _exists(path: epath.Path) -> bool:
    """Whether a folder is there.

    Raises:
      InputError: if it is remote and cannot be reached.
    """
    try:
        return path.exists()
    except Exception as error:  # each kind of storage has errors of its own
        if "://" not in str(path):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(
            f"{path} cannot be reached: {reason}\ncheck the network and who is logged in "
            "(`gcloud auth application-default login`), or copy the folder to a local disk"
        ) from error


def _downloaded(text: str, revision: str | None) -> str:
    """Returns the folder of a name of the hub, once it is here.

    Raises:
      InputError: if it is no such name, the hub does not give it, or gives no model.
    """
    name = split_name(text)
    if "://" in text:
        raise InputError(f"there is no folder {text!r}; list its bucket: gcloud storage ls")
    if name is None:
        raise InputError(
            f"there is no folder {text!r}; give a model_dir, a Hugging Face folder, "
            "a T5X checkpoint, or ORGANISATION/NAME of the Hugging Face hub"
        )
    model, own = name
    if own is not None and revision not in (None, own):
        raise InputError(f"revision = {revision!r}: {text!r} names another; give one of them")
    folder = epath.Path(from_hub(model, revision=own or revision))
    check_adapter(folder, weights=huggingface.has_weights(folder))
    if not huggingface.is_folder(folder):
        names = ", ".join(sorted(child.name for child in folder.iterdir())[:8])
        raise InputError(
            f"{model} of the Hugging Face hub is not a model of transformers: it has no "
            f"config.json, but {names or 'none of the files that are read'}; give another name"
        )
    return str(folder)


def _nothing(folder: epath.Path) -> str:
    """Returns what to say of a folder that is none of the three."""
    names = sorted(child.name for child in folder.iterdir())
    if inside := [name for name in names if _is_checkpoint(folder / name)]:
        # By their numbers: checkpoint-500 comes before checkpoint-1000.
        inside.sort(key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
        listed = ", ".join(inside[-8:]) + (f" and {len(inside) - 8} more" if inside[8:] else "")
        return (
            f"no checkpoint in '{folder}' itself, but in folders inside it: {listed}\n"
            f"give one of them: {folder / inside[-1]}"
        )
    there = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return (
        f"no checkpoint in '{folder}', which holds {there or 'nothing'}; needed are\n"
        "  t5lite: a model_dir (model.json, checkpoints/), its checkpoints/, or one step's folder\n"
        "  Hugging Face: config.json beside model.safetensors, or beside parts with an index\n"
        "  T5X: checkpoint_N, or the folder that holds some"
    )


def _is_checkpoint(folder: epath.Path) -> bool:
    """Whether a folder inside the one that was given is a model, or an adapter."""
    if not folder.is_dir():
        return False
    return (
        (folder / "model.json").exists()
        or (huggingface.is_folder(folder) and huggingface.has_weights(folder))
        or is_adapter(folder)
        or bool(saved_steps(folder))
        or t5x.find_checkpoint(folder) is not None
    )


@dataclasses.dataclass(frozen=True)
class Own:
    """A checkpoint of t5lite, opened; see `Foreign`."""

    spec: ModelSpec
    found: "Located"
    vocabulary: Vocabulary | None
    labels: Labels
    prompts: Prompts | None
    generation: GenerationDefaults | None = None
    inputs: InputFormat = InputFormat()
    embedding: EmbeddingDefaults | None = None

    @property
    def origin(self) -> huggingface.Origin | None:
        """The files of the Hugging Face folder that the model comes from; None for none."""
        return huggingface.kept(self.found.home)

    @property
    def where(self) -> str:
        """The step folder."""
        return str(self.found.step_folder)

    @property
    def step(self) -> int:
        """Updates done."""
        wanted = {"step": jax.ShapeDtypeStruct((), jnp.int32)}
        return int(read_arrays(self.found.step_folder, wanted)["step"])

    def params(
        self, model: Model, *, layout: Layout, mesh: Any, dtype: Any = None, progress: Any = None
    ) -> Any:
        """Reads the parameters, averaged ones where there are some, into their shards."""
        del progress  # Orbax reads all at once
        saved = saved_arrays(self.found.step_folder)
        part = "extra/ema" if any(name.startswith("extra/ema/") for name in saved) else "params"

        def leaf(path: Any, shape: Any, sharding: Any) -> jax.ShapeDtypeStruct:
            name = f"{part}/{jax.tree_util.keystr(path, simple=True, separator='/')}"
            kind = getattr(saved.get(name), "dtype", shape.dtype) if dtype is None else dtype
            if stays_float32(self.spec.family, name, dtype):
                kind = "float32"
            return jax.ShapeDtypeStruct(shape.shape, jnp.dtype(kind), sharding=sharding)

        placed = shardings(model.axes(), layout.parameters, mesh)
        like = jax.tree_util.tree_map_with_path(leaf, model.shapes(), placed)
        params = _read(self.found, like, part=part)
        for path, array in named(params).items():
            if not leaf_is_finite(array):
                self._raise_fault(f"{part}/{path}", saved[f"{part}/{path}"], array.dtype)
        return params

    def _raise_fault(self, name: str, saved: Any, dtype: Any) -> None:
        """Raises the InputError of an array with NaN, infinity, or too large a number."""
        wanted = {name: jax.ShapeDtypeStruct(saved.shape, saved.dtype)}
        stored = read_arrays(self.found.step_folder, wanted)
        if (error := fault(stored.items(), dtype, where=self.where)) is not None:
            raise error


class Located(NamedTuple):
    """Where a checkpoint lies.

    Args:
      step_folder: its arrays.
      home: what they are: `model.json`, `vocabulary/` unless the data has no text, and
        `labels.json` if it has labels with names.
    """

    step_folder: epath.Path
    home: epath.Path


def locate(folder: epath.PathLike) -> Located:
    """Finds a checkpoint and its description, reading neither.

    Args:
      folder: as `t5lite.load` takes it.

    Raises:
      InputError: no such folder, no checkpoint, or no model.json.
    """
    if not absolute(folder).exists():
        raise InputError(f"there is no folder {str(folder)!r}; give a model_dir")
    step_folder = find_step_folder(folder)
    for home in (step_folder, *step_folder.parents[:2]):
        if (home / "model.json").exists():
            return Located(step_folder, home)
    raise InputError(
        f"no model.json in {step_folder} or the two folders above; "
        "copy the one of the model_dir it came from there"
    )


def _read(found: Located, like: Any, *, part: str) -> Any:
    try:
        return load_params(found.step_folder, like, part=part).params
    except InputError as error:
        problem = "\n".join(str(error).splitlines()[1:3])
        raise InputError(
            f"{found.home / 'model.json'} does not describe the parameters in "
            f"{found.step_folder}:\n{problem}"
        ) from error
