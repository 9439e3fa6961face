"""Reads checkpoint folders by name: all of the state, or parameters under other names."""

import contextlib
import functools
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from t5lite.errors import InputError, RunError
from t5lite.paths import as_path
from t5lite.training.checksums import Checksum, checksums
from t5lite.training.mapping import Rule, check_mapping, match
from t5lite.training.tuning import named as named
from t5lite.training.tuning import nest

_GROUP_BYTES = 2**30  # of arrays that are in memory twice while they are cast


class CheckpointError(RunError):
    """A checkpoint could not be written or read: full disk, damage, lost connection."""


class Loaded(NamedTuple):
    """Parameters read by `load_params` from a step `folder`.

    Args:
      params: tree like `like`, or nested dicts of numpy arrays.
      fresh: names that were not restored; those leaves are the ones of `like`.
    """

    params: Any
    fresh: tuple[str, ...]
    folder: epath.Path


def load_params(
    folder: epath.PathLike,
    like: Any = None,
    *,
    mapping: Sequence[Rule] = (),
    part: str = "params",
) -> Loaded:
    r"""Reads the parameters of a checkpoint, renamed by `mapping`.

    Names are paths joined by "/", such as `encoder/layers/block_0/attention/query/kernel`. Every
    name of `like` and every saved name must be accounted for: by equality, or by a rule. A rule is
    a regular expression for a whole name and its replacement; the first one that matches counts:

        (r"encoder/(.*)", r"bert/\1")   in `like` as encoder/…, saved as bert/…
        (r"classifier/.*", None)        in `like`, but not restored: keeps its value
        (None, r"decoder/.*")           saved, but ignored

    A rule that matches no name is an error. Several names may be read from one saved name.

    Args:
      folder: a model_dir, its checkpoints folder (the newest step is read) or one step folder.
      like: tree of arrays or `jax.ShapeDtypeStruct`: names, shapes, dtypes (floats are cast to
        them) and shardings (none: numpy). None: everything is read as saved, to numpy.
      mapping: the rules.
      part: of the state: `"params"`, `"extra/ema"`, or `""` for all of it.

    Raises:
      InputError: there is no checkpoint, names are missing on either side, a rule matches no name,
        or shapes differ.
      CheckpointError: the checkpoint is damaged.
    """
    check_mapping(mapping)
    if mapping and like is None:
        raise InputError("mapping: needs `like`, the tree whose names it maps", field="mapping")
    step_folder = find_step_folder(folder)
    prefix = f"{part}/" if part else ""
    with _other_step_suggested(step_folder):
        arrays, document = read_together(step_folder, lambda: read_description(step_folder))
        saved = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
        if not saved:
            parts = ", ".join(sorted({name.partition("/")[0] for name in arrays}))
            raise InputError(
                f"part = {part!r}: the checkpoint {step_folder} has no such part; it has {parts}",
                field="part",
            )

        def read(leaves: Mapping[str, Any]) -> dict[str, Any]:
            full = {prefix + name: leaf for name, leaf in leaves.items()}
            sums = document.get("checksums", {})
            values = read_checked(step_folder, full, saved=arrays, sums=sums)
            return {name: values[prefix + name] for name in leaves}

        if like is None:
            shapes = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in saved.items()}
            return Loaded(nest(read(shapes)), (), step_folder)
        expected = named(like)
        sources = match(expected, saved, mapping, label=f"{step_folder} ({part})")
        renamed = {name: saved[source] for name, source in sources.items()}
        check_same(step_folder, renamed, {name: expected[name] for name in sources}, cast=True)
        values, rest = dict(expected), sources
        while rest:  # a source of two names is read twice, as dtypes and shardings may differ
            once = {source: name for name, source in rest.items()}
            loaded = read({source: expected[name] for source, name in once.items()})
            values |= {once[source]: array for source, array in loaded.items()}
            rest = {name: source for name, source in rest.items() if once[source] != name}
    fresh = tuple(name for name in expected if name not in sources)
    params = jax.tree.unflatten(jax.tree.structure(like), list(values.values()))
    return Loaded(params, fresh, step_folder)


@contextlib.contextmanager
def _other_step_suggested(step_folder: epath.Path) -> Iterator[None]:
    """Adds the newest other checkpoint, if any, to the error of a damaged one."""
    try:
        yield
    except CheckpointError as error:
        steps = {
            step: path
            for step, path in saved_steps(step_folder.parent).items()
            if path != step_folder
        }
        if not steps:
            raise
        newest = steps[max(steps)]
        raise CheckpointError(f"{error}; another one is {newest}: give its folder") from error


def absolute(folder: epath.PathLike) -> epath.Path:
    """Returns a local path as absolute, as Orbax requires, and `gs://…` unchanged.

    Raises an InputError for a URL of an unknown scheme.
    """
    path = epath.Path(as_path(folder))
    return path if "://" in str(path) else path.resolve()


def saved_arrays(folder: epath.Path) -> dict[str, Any]:
    """Returns name → metadata (shape, dtype) of every array of a step, frozen ones included."""
    frozen = _frozen_beside(folder)
    return _arrays_in(folder) | ({} if frozen is None else _arrays_in(frozen))


def _arrays_in(folder: epath.Path) -> dict[str, Any]:
    return named(ocp.PyTreeCheckpointHandler().metadata(folder / "state").tree)


def frozen_folder(step_folder: epath.Path, entry: Mapping[str, str]) -> epath.Path:
    """Returns the folder of a step's frozen arrays, by the `frozen` of its document."""
    return step_folder.parent.parent / "frozen" / entry["fingerprint"]


def _frozen_beside(folder: epath.Path) -> epath.Path | None:
    """Returns the folder of a step's frozen arrays; None if they are in the step or elsewhere."""
    entry = read_document(folder).get("frozen")
    return None if entry is None or "folder" in entry else frozen_folder(folder, entry)


def write_document(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the JSON document of a state, with a checksum of itself."""
    plain = json.loads(json.dumps(content))  # a copy: the caller may edit the content meanwhile
    return plain | {"crc32": _crc32(plain)}


def read_document(folder: epath.Path) -> dict[str, Any]:
    """Reads the JSON document of a state, {} without one; raises ValueError if it is damaged."""
    path = folder / "progress" / "metadata"
    if not path.exists():
        return {}
    document = json.loads(path.read_text())
    expected = document.pop("crc32", None)  # older versions wrote none
    if expected is not None and expected != _crc32(document):
        raise ValueError(f"{path} is not what was written")
    return document


def read_description(folder: epath.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns `saved_arrays` and `read_document` of a step folder; ValueError if damaged."""
    saved, document = _arrays_in(folder), read_document(folder)
    if "checksums" in document and document["checksums"].keys() != saved.keys():
        raise ValueError("the names of the arrays are not those that were saved")
    if (frozen := _frozen_beside(folder)) is not None:
        frozen_arrays, frozen_document = read_description(frozen)
        saved |= frozen_arrays
        document["checksums"] |= frozen_document["checksums"]
    return saved, document


def _crc32(document: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(document, sort_keys=True).encode())


def read_checked(
    folder: epath.Path,
    expected: Mapping[str, Any],
    *,
    saved: Mapping[str, Any],
    sums: Mapping[str, Checksum],
) -> dict[str, Any]:
    """Reads arrays on every process; raises CheckpointError unless they have their checksums.

    Args:
      folder: the step folder.
      expected: see `read_arrays`; floats may have another dtype than the saved ones.
      saved: name → leaf as in the checkpoint.
      sums: name → checksum; older checkpoints have none.
    """
    arrays: dict[str, Any] = {}
    for group in _groups(expected, saved, sums):
        # Arrays with a checksum are read in their saved dtype, and cast afterwards.
        leaves = {name: expected[name] for name in group} | {
            name: jax.ShapeDtypeStruct(
                expected[name].shape,
                saved[name].dtype,
                sharding=getattr(expected[name], "sharding", None),
            )
            for name in group
            if name in sums
        }
        read = read_together(folder, functools.partial(read_arrays, folder, leaves))
        actual = checksums({name: array for name, array in read.items() if name in sums})
        read_together(folder, functools.partial(_compare, actual, sums))
        arrays |= {
            name: array
            if array.dtype == expected[name].dtype
            else array.astype(expected[name].dtype)
            for name, array in read.items()
        }
    return {name: arrays[name] for name in expected}


def _compare(actual: Mapping[str, Checksum], expected: Mapping[str, Checksum]) -> None:
    for name, value in actual.items():
        if value != list(expected[name]):
            raise ValueError(f"{name} is not what was saved")


def _groups(
    expected: Mapping[str, Any], saved: Mapping[str, Any], sums: Mapping[str, Checksum]
) -> list[list[str]]:
    """Returns names to read together: all that need no cast, and the others by `_GROUP_BYTES`."""
    cast = [
        name
        for name, leaf in expected.items()
        if name in sums and np.dtype(leaf.dtype) != np.dtype(saved[name].dtype)
    ]
    sizes = [np.dtype(saved[n].dtype).itemsize * int(np.prod(saved[n].shape)) for n in cast]
    number = dict(
        zip(cast, (end // _GROUP_BYTES for end in itertools.accumulate(sizes)), strict=True)
    )
    rest = [name for name in expected if name not in number]
    groups = [list(names) for _, names in itertools.groupby(cast, number.__getitem__)]
    return [rest, *groups] if rest else groups


def read_arrays(folder: epath.Path, expected: Mapping[str, Any]) -> dict[str, Any]:
    """Reads arrays from a step folder: name → array, in the order of `expected`, and no others.

    `expected` gives name → leaf with shape, dtype and perhaps sharding (without one: to numpy).
    """
    frozen = _frozen_beside(folder)
    apart = {n: leaf for n, leaf in expected.items() if frozen and n.startswith("frozen/")}
    arrays = _read_from(frozen, apart) if frozen else {}
    arrays |= _read_from(folder, {n: leaf for n, leaf in expected.items() if n not in apart})
    return {name: arrays[name] for name in expected}


def _read_from(folder: epath.Path, expected: Mapping[str, Any]) -> dict[str, Any]:
    if not expected:
        return {}
    # The handler alone: an Orbax Checkpointer ends a read with a barrier, where the processes would
    # wait for one that met damage.
    handler = ocp.PyTreeCheckpointHandler()
    saved = handler.metadata(folder / "state").tree
    names, structure = list(named(saved)), jax.tree.structure(saved)
    leaves = [expected.get(name, ocp.PLACEHOLDER) for name in names]
    restored = handler.restore(
        folder / "state",
        args=ocp.args.PyTreeRestore(
            jax.tree.unflatten(structure, leaves),
            restore_args=jax.tree.unflatten(structure, [_restore_args(leaf) for leaf in leaves]),
        ),
    )
    values = dict(zip(names, jax.tree.leaves(restored), strict=True))
    return {name: values[name] for name in expected}


def _restore_args(leaf: Any) -> ocp.RestoreArgs:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=getattr(leaf, "dtype", None))
    return ocp.ArrayRestoreArgs(
        restore_type=jax.Array, sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype
    )


def read_together(folder: epath.Path, read: Callable[[], Any]) -> Any:
    """Runs `read` on every process; if it fails on one, all raise `CheckpointError`."""
    result, error = None, None
    try:
        result = read()
    except (InputError, MemoryError, jax.errors.JaxRuntimeError):
        raise  # a mistake of the user or a failing device, not damage
    except Exception as caught:  # Orbax and TensorStore raise anything, bare Exception included
        error = caught
    succeeded = error is None
    if jax.process_count() > 1:
        succeeded = bool(np.all(multihost_utils.process_allgather(np.array(succeeded))))
    if succeeded:
        return result
    cause = reason(error) if error else "another process could not read it"
    raise CheckpointError(f"the checkpoint {folder} is damaged: {cause}") from error


def check_same(
    folder: epath.Path, saved: Mapping[str, Any], expected: Mapping[str, Any], *, cast: bool = False
) -> None:
    """Raises an InputError with the first differences of two trees; see `differences`."""
    if lines := differences(saved, expected, cast=cast):
        more = [f"  and {len(lines) - 3} more"] if len(lines) > 3 else []
        heading = f"the checkpoint {folder} does not fit:"
        raise InputError("\n".join([heading, *lines[:3], *more]))


def differences(
    saved: Mapping[str, Any], expected: Mapping[str, Any], *, cast: bool = False
) -> list[str]:
    """Returns a line for each leaf that differs in shape or dtype; `cast` lets floats differ."""
    return [
        f"  {name}: saved {_describe(saved.get(name))}, expected {_describe(expected.get(name))}"
        for name in {**expected, **saved}
        if not _same(saved.get(name), expected.get(name), cast=cast)
    ]


def _same(saved: Any, expected: Any, *, cast: bool) -> bool:
    if saved is None or expected is None or tuple(saved.shape) != tuple(expected.shape):
        return False
    floats = [jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating) for leaf in (saved, expected)]
    return np.dtype(saved.dtype) == np.dtype(expected.dtype) or (cast and all(floats))


def _describe(leaf: Any) -> str:
    return "nothing" if leaf is None else f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"


def reason(error: Exception) -> str:
    """Returns an exception in a few words: TensorStore names the paths first, the cause last."""
    text = (str(error) or "no message").splitlines()[0]
    text = re.split(r" \[(?:tensorstore_spec|source|os_error)| See full TensorStore", text)[0]
    return f"{type(error).__name__}: {text if len(text) <= 120 else '…' + text[-120:]}"


def find_step_folder(folder: epath.PathLike) -> epath.Path:
    """Returns a step folder unchanged, and of the folders that hold steps the newest step.

    Raises an InputError without a step.
    """
    root = absolute(folder)
    if (root / "state").exists():
        return root
    if steps := saved_steps(root):
        return steps[max(steps)]
    raise InputError(
        f"no checkpoint in {str(folder)!r}\n"
        "give a model_dir, its checkpoints folder or one step's folder; of Hugging Face folders "
        "and T5X checkpoints, `t5lite convert` makes such ones"
    )


def saved_steps(folder: epath.PathLike) -> dict[int, epath.Path]:
    """Returns step → folder of every complete checkpoint in a model_dir or checkpoints folder."""
    root = absolute(folder)
    for parent in (root / "checkpoints", root):
        steps = list(ocp.path.step.standard_name_format().find_all(parent))
        if steps:
            return {step.step: step.path for step in steps}
    return {}
