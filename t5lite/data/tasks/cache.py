"""SeqIO's own offline cache, written without Beam, for any program that uses SeqIO.

DIR/TASK/SPLIT.tfrecord-00000-of-00064 …   examples at the task's `seqio.CacheDatasetPlaceholder`
DIR/TASK/{info,stats}.SPLIT.json           shapes and types; counts of examples and tokens
DIR/TASK/vocabularies.json                 fingerprints by feature; not read by SeqIO
DIR/TASK/COMPLETED                         written last; SeqIO sees no cache without it
"""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from t5lite.data.importing import import_seqio
from t5lite.data.order import generator
from t5lite.data.packed.format import whole_folder
from t5lite.data.paths import as_path
from t5lite.data.tasks.twins import from_seqio
from t5lite.errors import InputError, require_integer

_VOCABULARIES = "vocabularies.json"


def write_seqio_cache(
    task: Any,
    folder: str | os.PathLike,
    *,
    num_shards: int = 64,
    seed: int = 0,
    progress: Callable[[str, int], None] = lambda split, examples: None,
) -> Any:
    """Caches all splits of a task, as `seqio_cache_tasks` does; returns the task's folder.

    Args:
      task: a `seqio.Task` with a `seqio.CacheDatasetPlaceholder` among its preprocessors.
      folder: of all caches, local or remote; the argument of `seqio.add_global_cache_dirs`.
      num_shards: files of a split, > 0, to which examples are dealt in turn.
      seed: of randomness in the preprocessors.
      progress: called with a split and the number of further examples written.
    Raises: InputError if the task cannot be cached, or has a cache already.
    """
    seqio = import_seqio()
    require_integer("num_shards", num_shards)
    if not task.supports_caching:
        raise InputError(
            f"task {task.name!r} has no seqio.CacheDatasetPlaceholder(): put one among its "
            "preprocessors, after the last one whose work is cached"
        )
    target = as_path(folder) / seqio.utils.get_task_dir_from_name(task.name)
    if (target / "COMPLETED").exists():
        raise InputError(f"{target} holds a cache already: delete it, or choose another folder")
    with _writing(target) as root:
        for split in task.splits:
            info, stats = _write_split(
                task, split, str(root), num_shards=num_shards, seed=seed, progress=progress
            )
            for name, content in (
                (seqio.utils.get_cached_info_path("", split), info),
                (seqio.utils.get_cached_stats_path("", split), stats),
            ):
                (root / name).write_text(json.dumps(content, indent=2, sort_keys=True))
        (root / _VOCABULARIES).write_text(json.dumps(_fingerprints(task), indent=2))
        (root / "COMPLETED").write_text("")
    return target


def check_vocabularies(task: Any) -> None:
    """Refuses a cache that t5lite made with another vocabulary than the task's."""
    path = as_path(task.cache_dir) / _VOCABULARIES
    if not path.exists():  # written by another program
        return
    try:
        cached = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged: {error}; cache the task again") from error
    for name, fingerprint in _fingerprints(task).items():
        if cached.get(name) != fingerprint:
            raise InputError(
                f"use_cached: {task.cache_dir} was made with another vocabulary for {name!r} "
                f"(sha256 {str(cached.get(name))[:12]}, now {fingerprint[:12]}); cache the task "
                "again, or give it the vocabulary of then",
                field="use_cached",
            )


def _fingerprints(task: Any) -> dict[str, str]:
    fingerprints = {}
    for name, feature in task.output_features.items():
        with contextlib.suppress(InputError):  # of a kind that only SeqIO knows
            if (vocabulary := from_seqio(feature.vocabulary)) is not None:
                fingerprints[name] = vocabulary.fingerprint
    return fingerprints


def _writing(target: Any) -> contextlib.AbstractContextManager[Any]:
    """Yields the folder to write to, complete or absent; on object stores COMPLETED marks it."""
    if isinstance(target, Path):
        return whole_folder(target)
    target.mkdir(parents=True, exist_ok=True)
    return contextlib.nullcontext(target)


def _write_split(
    task: Any,
    split: str,
    root: str,
    *,
    num_shards: int,
    seed: int,
    progress: Callable[[str, int], None],
) -> tuple[dict[str, Any], dict[str, int]]:
    """Writes the files of a split; returns its info and its statistics."""
    seqio = import_seqio()
    import tensorflow as tf

    prefix = seqio.utils.get_cached_tfrecord_prefix(root, split)
    info = {"num_shards": num_shards, "seqio_version": seqio.__version__, "features": {}}
    stats = {"examples": 0}
    seed = int(generator("seqio", task.name, split, seed).integers(2**30))
    dataset = task.source.get_dataset(split=split, shuffle=False, seed=seed)
    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context(tf.io.TFRecordWriter(f"{prefix}-{number:05d}-of-{num_shards:05d}"))
            for number in range(num_shards)
        ]
        for example in task.preprocess_precache(dataset, seed=seed).prefetch(tf.data.AUTOTUNE):
            if not stats["examples"]:
                info["features"] = {name: _described(value) for name, value in example.items()}
            record = seqio.utils.dict_to_tfexample(example)
            files[stats["examples"] % num_shards].write(record.SerializeToString())
            stats["examples"] += 1
            _count_tokens(task.output_features, example, stats)
            progress(split, 1)
    return info, stats


def _described(value: Any) -> dict[str, Any]:
    shape = value.shape.as_list()
    return {"shape": [None, *shape[1:]] if shape else [], "dtype": value.dtype.name}


def _count_tokens(features: Any, example: Any, stats: dict[str, int]) -> None:
    """Counts ids that are neither padding nor EOS, in all and of the longest example."""
    for name, feature in features.items():
        if name in example and example[name].dtype.name in ("int32", "int64"):
            ids = np.asarray(getattr(example[name], "flat_values", example[name]))
            special = {feature.vocabulary.pad_id, feature.vocabulary.eos_id} - {None}
            tokens = int(np.sum(~np.isin(ids, list(special))))
            stats[f"{name}_tokens"] = stats.get(f"{name}_tokens", 0) + tokens
            stats[f"{name}_max_tokens"] = max(stats.get(f"{name}_max_tokens", 0), tokens)
