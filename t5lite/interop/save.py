"""Writes a model into a folder of its own, in any of the three layouts that `load` opens."""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from t5lite.data import Vocabulary
from t5lite.data.input_format import AMONG_OTHERS, InputFormat, save_input_format
from t5lite.data.labels import Labels, save_labels
from t5lite.data.paths import check_folder
from t5lite.errors import InputError, unknown
from t5lite.interop import huggingface, t5x
from t5lite.interop.embedding_defaults import EmbeddingDefaults, save_embedding
from t5lite.interop.generation_defaults import GenerationDefaults, save_defaults
from t5lite.interop.prompts import save_prompts
from t5lite.models import Model, ModelSpec, save_spec
from t5lite.objectives import Prompts
from t5lite.training import Checkpoints, TrainState
from t5lite.training.claims import claimed
from t5lite.training.restore import absolute

_CLAIMS = ".claims"
KINDS = ("t5lite", "huggingface", "t5x")


def save(
    folder: epath.PathLike,
    model: Model | ModelSpec,
    params: Any,
    *,
    kind: str = "t5lite",
    vocabulary: Vocabulary | None = None,
    labels: Labels = MappingProxyType({}),
    prompts: Prompts | None = None,
    generation: GenerationDefaults | None = None,
    embedding: EmbeddingDefaults | None = None,
    origin: huggingface.Origin | None = None,
    inputs: InputFormat = InputFormat(),
    step: int = 0,
    scanned: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes parameters and all that `load` needs to open them again.

    Args:
      folder: new or empty; made if need be. Local, except for "t5lite".
      model: a model, or its spec.
      params: its parameters, sharded or not; their dtypes stay.
      kind: the layout: "t5lite" (`model.json`, `vocabulary/`, `checkpoints/STEP`), which runs start
        from (`INITIAL_CHECKPOINT_PATH`), "huggingface", or "t5x" (`checkpoint_STEP`).
      vocabulary: of the token ids; None for none. T5X's layout has no place for it.
      labels: names of what a head's outputs mean, by label feature; likewise.
      prompts: how the model was prompted in training, which "huggingface" has in the tokenizer's
        template; None: unknown, so that a decoder is taken to be causal.
      generation: how the model writes unless options say otherwise, its
        `generation_config.json`. T5X's layout has no place for it.
      embedding: how the model embeds texts unless options say otherwise: sentence-transformers'
        files, and `embedding.json` of "t5lite". T5X's layout has no place for it.
      origin: the files of the Hugging Face folder that the model comes from, as `open_model` has
        them: kept by "t5lite" in `origin/`, and written back by "huggingface".
      inputs: how rows become texts, for "t5lite" and "huggingface".
      step: updates done.
      scanned: whether "t5x" is written for layers that are scanned.
      progress: called with bytes written and bytes in all, by "huggingface".

    Raises:
      InputError: a folder that holds something, or a spec that the layout cannot express.
    """
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    spec = model if isinstance(model, ModelSpec) else model.spec
    root = check_target(folder)
    with claimed(root / _CLAIMS, name=str(root)):
        check_target(folder)  # again: now nobody else writes there
        if kind == "huggingface":
            huggingface.save(
                root,
                spec,
                params,
                vocabulary=vocabulary,
                labels=labels,
                generation=generation,
                embedding=embedding,
                origin=origin,
                prompts=prompts,
                progress=progress,
            )
            save_input_format(root, inputs, name=AMONG_OTHERS)
        elif kind == "t5x":
            t5x.save(root, spec, params, step=step, scanned=scanned)
        else:
            if spec.decoder is not None and prompts is None:
                prompts = Prompts.by_default(
                    vocabulary, topology=spec.topology, start_id=spec.start_id
                )
            huggingface.keep(root, origin)
            _save(
                root,
                spec,
                params,
                vocabulary=vocabulary,
                labels=labels,
                prompts=prompts,
                generation=generation,
                embedding=embedding,
                inputs=inputs,
                step=step,
            )


def losses(found: Any, *, kind: str) -> list[str]:
    """Returns what of a checkpoint another layout has no place for, one line each.

    Args:
      found: what `open_model` returns.
      kind: the layout to be written.

    Raises:
      InputError: if the layout cannot express the model at all; see `save`.
    """
    lines = []
    if found.origin is not None and kind != "t5x":
        lines += [f"{name}: not copied" for name in found.origin.others()]
    if kind == "huggingface":
        lines += huggingface.losses(
            found.spec,
            vocabulary=found.vocabulary,
            labels=found.labels,
            origin=found.origin,
            prompts=found.prompts,
        )
    if kind == "t5x":
        parts = {
            "the tokenizer": found.vocabulary,
            "names of labels": found.labels,
            "how the model is prompted": found.prompts,
            "generation_config.json": found.generation,
            "how texts are embedded": found.embedding,
            "config.json": found.origin,
        }
        said = [name for name, part in parts.items() if part is not None and part != {}]
        lines += [f"{name}: T5X's layout has no place for it" for name in said]
    return lines


def _save(
    root: epath.Path,
    spec: ModelSpec,
    params: Any,
    *,
    vocabulary: Vocabulary | None,
    labels: Labels,
    prompts: Prompts | None,
    generation: GenerationDefaults | None,
    embedding: EmbeddingDefaults | None,
    inputs: InputFormat,
    step: int,
) -> None:
    """Writes a checkpoint, and what describes it, as a run does."""
    rng = jax.random.key_data(jax.random.key(0))
    state = TrainState(jnp.int32(step), params, {}, {}, rng, {})
    with Checkpoints().open(root) as checkpointer:
        checkpointer.save(step, state, progress={})
    if vocabulary is not None:
        vocabulary.save(root / "vocabulary")
    save_labels(root, labels)
    save_prompts(root, prompts)
    save_defaults(root, generation)
    save_embedding(root, embedding)
    save_input_format(root, inputs)
    save_spec(root / "model.json", spec)


def check_target(folder: epath.PathLike) -> epath.Path:
    """Returns the path of a folder that is new or empty; raises an InputError for others."""
    check_folder(folder, field="TARGET")
    root = absolute(folder)
    if root.exists() and any(path.name != _CLAIMS for path in root.iterdir()):
        raise InputError(f"{root} holds something already; give a folder that is new or empty")
    return root
