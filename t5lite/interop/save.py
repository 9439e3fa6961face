"""Writes a model into a folder, in any of the three layouts that `load` opens."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from t5lite.data.paths import check_folder
from t5lite.errors import InputError, unknown
from t5lite.interop import huggingface, t5x
from t5lite.interop.description import Description
from t5lite.objectives import Prompts
from t5lite.training import Checkpoints, TrainState
from t5lite.training.claims import claimed
from t5lite.training.restore import absolute
from t5lite.training.tuning import Everything

_CLAIMS = ".claims"
KINDS = ("t5lite", "huggingface", "t5x")


def save(
    folder: epath.PathLike,
    description: Description,
    params: Any,
    *,
    kind: str = "t5lite",
    step: int = 0,
    scanned: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes parameters and their description, which `load` opens.

    Args:
      folder: new or empty; created if need be. Local, except for "t5lite".
      description: of the model: `Description(spec, vocabulary, …)`. "t5x" stores its spec alone.
      params: its parameters, sharded or not; their dtypes stay.
      kind: the layout: "t5lite" (`model.json`, `vocabulary/`, `checkpoints/STEP`), which runs start
        from (`INITIAL_CHECKPOINT_PATH`), "huggingface", or "t5x" (`checkpoint_STEP`).
      step: updates done.
      scanned: whether "t5x" is written for scanned layers.
      progress: called with bytes written and bytes in all, by "huggingface".

    Raises: InputError for a folder that is not empty, or a spec that the layout cannot express.
    """
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    root = check_target(folder)
    with claimed(root / _CLAIMS, name=str(root)):
        check_target(folder)  # again: now no other process writes there
        if kind == "huggingface":
            huggingface.save(root, description, params, progress=progress)
        elif kind == "t5x":
            t5x.save(root, description.spec, params, step=step, scanned=scanned)
        else:
            _save(root, description, params, step=step)


def losses(description: Description, *, kind: str) -> list[str]:
    """Returns the parts of a description that a layout cannot store, one line each.

    Args:
      kind: the layout to be written.

    Raises: InputError for a model that the layout cannot express at all; see `save`.
    """
    lines = []
    if description.origin is not None and kind != "t5x":
        lines += [f"{name}: not copied" for name in description.origin.uncopied()]
    if kind == "huggingface":
        lines += huggingface.losses(description)
    if kind == "t5x":
        parts = {
            "the tokenizer": description.vocabulary,
            "names of labels": description.labels or None,
            "how the model is prompted": description.prompts,
            "generation_config.json": description.generation,
            "how texts are embedded": description.embedding,
            "config.json": description.origin,
        }
        names = [name for name, part in parts.items() if part is not None]
        lines += [f"{name}: not stored in T5X checkpoints" for name in names]
    return lines


def _save(root: epath.Path, description: Description, params: Any, *, step: int) -> None:
    spec, description = description.spec, description.replace(tuning=Everything())
    if spec.decoder is not None and description.prompts is None:
        prompts = Prompts.by_default(
            description.vocabulary, topology=spec.topology, start_id=spec.start_id
        )
        description = description.replace(prompts=prompts)
    rng = jax.random.key_data(jax.random.key(0))
    state = TrainState(jnp.int32(step), params, {}, {}, rng, {})
    with Checkpoints().open(root) as checkpointer:
        checkpointer.save(step, state, progress={})
    description.write(root)


def check_target(folder: epath.PathLike) -> epath.Path:
    """Returns the path of a folder that is new or empty; raises an InputError for others."""
    check_folder(folder, field="TARGET")
    root = absolute(folder)
    if root.exists() and any(path.name != _CLAIMS for path in root.iterdir()):
        raise InputError(f"{root} holds something already; give a folder that is new or empty")
    return root
