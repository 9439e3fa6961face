"""Reads arrays out of a checkpoint by name: all of the state, or some under other names."""

import contextlib
import difflib
import functools
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from t5lite.errors import InputError, RunError
from t5lite.paths import as_path
from t5lite.training.checksums import Checksum, checksums

Rule = tuple[str | None, str | None]
_SHOWN = 6  # names in a message
_GROUP_BYTES = 2**30  # of arrays that are in memory twice while they are cast


class CheckpointError(RunError):
    """A checkpoint that could not be written or read: a full disk, damage, a lost connection."""


class Loaded(NamedTuple):
    """What `load_params` returns.

    Args:
      params: tree like `like`, or nested dicts of numpy arrays.
      fresh: names that were not restored; those leaves are the ones of `like`.
      folder: the step folder that was read.
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
    r"""Reads only the parameters of a checkpoint, under other names where `mapping` says so.

    Names are paths joined by "/", such as `encoder/layers/block_0/attention/query/kernel`. Every
    wanted name and every saved name must be accounted for: by being the same, or by a rule. Rules
    are pairs of a regular expression for a whole name and what becomes of it; the first that
    matches counts:

        (r"encoder/(.*)", r"bert/\1")   wanted as encoder/…, saved as bert/…
        (r"classifier/.*", None)        wanted, but not restored: stays as `like` has it
        (None, r"decoder/.*")           saved, but not wanted: left out

    A rule that matches no name at all is an error, as it is misspelt.
    Several wanted names may be read from one saved name.

    Args:
      folder: a model_dir, its checkpoints folder (the newest step is read) or one step folder.
      like: tree of arrays or `jax.ShapeDtypeStruct`: names, shapes, dtypes (floats are cast to
        them) and shardings (none: numpy). Without it everything is read as saved, to numpy.
      mapping: the rules.
      part: which part of the state to read: `"params"`, `"extra/ema"`, or `""` for all of it.

    Returns:
      The tree, the names left fresh and the step folder.

    Raises:
      InputError: if there is no checkpoint, if names are missing on either side (the first are
        listed, with the nearest ones), if a rule matches none, or if shapes differ.
      CheckpointError: if the checkpoint is damaged.
    """
    check_mapping(mapping)
    if mapping and like is None:
        raise InputError("load_params: mapping needs `like`, the tree whose names it maps")
    step_folder = find_step_folder(folder)
    with _older_one_named(step_folder):
        return _load_params(step_folder, like, mapping=mapping, part=part)


@contextlib.contextmanager
def _older_one_named(step_folder: epath.Path) -> Iterator[None]:
    """Adds to the error of a damaged checkpoint the newest of the others, if there is one."""
    try:
        yield
    except CheckpointError as error:
        saved = saved_steps(step_folder.parent)
        others = [step for step, path in saved.items() if path != step_folder]
        if not others:
            raise
        other = saved[max(others)]
        raise CheckpointError(f"{error}; another one is {other}: give its folder") from error


def _load_params(
    step_folder: epath.Path, like: Any, *, mapping: Sequence[Rule], part: str
) -> Loaded:
    prefix = f"{part}/" if part else ""

    everything, document = read_together(step_folder, lambda: read_description(step_folder))
    saved = {n.removeprefix(prefix): a for n, a in everything.items() if n.startswith(prefix)}
    if not saved:
        raise InputError(f"the checkpoint {step_folder} has no {part!r}")
    sums = {
        name.removeprefix(prefix): value
        for name, value in document.get("checksums", {}).items()
        if name.startswith(prefix)
    }

    def read(wanted: Mapping[str, Any]) -> dict[str, Any]:
        return read_checked(step_folder, wanted, saved=saved, sums=sums, prefix=prefix)

    if like is None:
        plain = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in saved.items()}
        return Loaded(_nest(read(plain)), (), step_folder)
    wanted = named(like)
    sources = match(wanted, saved, mapping, where=f"{step_folder} ({part})")
    renamed = {name: saved[source] for name, source in sources.items()}
    check_same(step_folder, renamed, {name: wanted[name] for name in sources}, cast=True)
    values, rest = dict(wanted), sources
    while rest:  # a saved name wanted twice is read twice, as dtypes and shardings may differ
        once = {source: name for name, source in rest.items()}
        arrays = read({source: wanted[name] for source, name in once.items()})
        values |= {once[source]: array for source, array in arrays.items()}
        rest = {name: source for name, source in rest.items() if once[source] != name}
    fresh = tuple(name for name in wanted if name not in sources)
    params = jax.tree.unflatten(jax.tree.structure(like), list(values.values()))
    return Loaded(params, fresh, step_folder)


def absolute(folder: epath.PathLike) -> epath.Path:
    """Returns a local path as an absolute one, which Orbax wants, and `gs://…` as it is.

    Raises:
      InputError: for a URL of an unknown scheme.
    """
    path = epath.Path(as_path(folder))
    return path if "://" in str(path) else path.resolve()


def check_mapping(mapping: Sequence[Rule]) -> None:
    """Raises InputError unless every rule is a pair that `load_params` can use."""
    for rule in mapping:
        pair = isinstance(rule, Sequence) and not isinstance(rule, str) and len(rule) == 2
        sides = [side for side in rule if side is not None] if pair else []
        if not sides or not all(isinstance(side, str) for side in sides):
            raise InputError(
                f"Checkpoints.restore_mapping: {rule!r} is not a pair of a pattern for wanted "
                "names and a saved name, of which one may be None",
                field="Checkpoints.restore_mapping",
            )
        try:
            re.compile(sides[0])
        except re.error as error:
            raise InputError(
                f"restore_mapping: {sides[0]!r} is not a regular expression: {error}"
            ) from error


def named(tree: Any) -> dict[str, Any]:
    """Returns name → leaf of a pytree, in its own order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def saved_arrays(folder: epath.Path) -> dict[str, Any]:
    """Returns name → metadata (shape, dtype) of every array of a step, frozen ones included."""
    frozen = _frozen_beside(folder)
    return _arrays_in(folder) | ({} if frozen is None else _arrays_in(frozen))


def _arrays_in(folder: epath.Path) -> dict[str, Any]:
    return named(ocp.PyTreeCheckpointHandler().metadata(folder / "state").tree)


def frozen_folder(step_folder: epath.Path, entry: Mapping[str, str]) -> epath.Path:
    """Returns where the frozen arrays of a step lie, by the `frozen` of its document."""
    return step_folder.parent.parent / "frozen" / entry["fingerprint"]


def _frozen_beside(folder: epath.Path) -> epath.Path | None:
    """Returns the folder of a step's frozen arrays, if they were saved apart from it."""
    entry = read_document(folder).get("frozen")
    return None if entry is None or "folder" in entry else frozen_folder(folder, entry)


def write_document(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the JSON document beside a state, with its own checksum in it."""
    plain = json.loads(json.dumps(content))  # a copy: the caller may change its own meanwhile
    return plain | {"crc32": _crc32(plain)}


def read_document(folder: epath.Path) -> dict[str, Any]:
    """Reads the JSON document beside a state; empty where a folder has none.

    Raises:
      ValueError: if it is damaged.
    """
    path = folder / "progress" / "metadata"
    if not path.exists():
        return {}
    document = json.loads(path.read_text())
    expected = document.pop("crc32", None)  # absent from those of older versions
    if expected is not None and expected != _crc32(document):
        raise ValueError(f"{path} is not what was written")
    return document


def read_description(folder: epath.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns `saved_arrays` and `read_document` of a step folder.

    Raises:
      ValueError: if they are damaged.
    """
    saved, document = _arrays_in(folder), read_document(folder)
    if "checksums" in document and document["checksums"].keys() != saved.keys():
        raise ValueError("the names of the arrays are not those that were saved")
    if (frozen := _frozen_beside(folder)) is not None:
        more, beside = read_description(frozen)
        saved |= more
        document["checksums"] |= beside["checksums"]
    return saved, document


def _crc32(document: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(document, sort_keys=True).encode())


def read_checked(
    folder: epath.Path,
    wanted: Mapping[str, Any],
    *,
    saved: Mapping[str, Any],
    sums: Mapping[str, Checksum],
    prefix: str = "",
) -> dict[str, Any]:
    """Reads arrays on every process and compares them with their checksums.

    Args:
      folder: the step folder.
      wanted: see `read_arrays`; floats may have another dtype than the saved ones.
      saved: name → leaf as in the checkpoint.
      sums: name → checksum, of those that have one.
      prefix: see `read_arrays`.

    Raises:
      CheckpointError: if the checkpoint is damaged.
    """
    arrays: dict[str, Any] = {}
    for group in _groups(wanted, saved, sums):
        # What has a checksum is read as it was saved, and cast afterwards.
        leaves = {
            name: wanted[name] if name not in sums else _with_dtype(wanted[name], saved[name].dtype)
            for name in group
        }
        read = read_together(folder, functools.partial(read_arrays, folder, leaves, prefix=prefix))
        read_sums = checksums({name: array for name, array in read.items() if name in sums})
        read_together(folder, functools.partial(_compare, read_sums, sums))
        arrays |= {name: _cast(array, wanted[name].dtype) for name, array in read.items()}
    return {name: arrays[name] for name in wanted}


def _compare(read: Mapping[str, Checksum], sums: Mapping[str, Checksum]) -> None:
    differing = [name for name, value in read.items() if value != list(sums[name])]
    if differing:
        raise ValueError(f"{differing[0]} is not what was saved")


def _groups(
    wanted: Mapping[str, Any], saved: Mapping[str, Any], sums: Mapping[str, Checksum]
) -> list[list[str]]:
    """Divides names into those that are read at once: all, but for large ones that are cast."""
    groups: list[list[str]] = [[]]
    room = _GROUP_BYTES
    for name, leaf in wanted.items():
        if name not in sums or np.dtype(leaf.dtype) == np.dtype(saved[name].dtype):
            groups[0].append(name)
            continue
        room -= np.dtype(saved[name].dtype).itemsize * int(np.prod(leaf.shape))
        if len(groups) == 1 or room < 0:
            groups.append([])
            room = _GROUP_BYTES
        groups[-1].append(name)
    return [group for group in groups if group]


def _with_dtype(leaf: Any, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=getattr(leaf, "sharding", None))


def _cast(array: Any, dtype: Any) -> Any:
    return array if array.dtype == dtype else array.astype(dtype)


def read_arrays(
    folder: epath.Path, wanted: Mapping[str, Any], *, prefix: str = ""
) -> dict[str, Any]:
    """Reads the wanted arrays, and no others, from a step folder.

    Args:
      folder: the step folder.
      wanted: name → leaf with shape, dtype and perhaps sharding (without one: to numpy).
      prefix: what stands before these names in the checkpoint.

    Returns:
      name → array, in the order of `wanted`.
    """
    frozen = _frozen_beside(folder)
    apart = [name for name in wanted if frozen and f"{prefix}{name}".startswith("frozen/")]
    arrays = _read_from(frozen, {name: wanted[name] for name in apart}, prefix) if frozen else {}
    rest = {name: leaf for name, leaf in wanted.items() if name not in arrays}
    arrays |= _read_from(folder, rest, prefix)
    return {name: arrays[name] for name in wanted}


def _read_from(folder: epath.Path, wanted: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    if not wanted:
        return {}
    # The handler alone, because a Checkpointer ends a read with a barrier, where the other
    # processes would wait for one that met damage.
    handler = ocp.PyTreeCheckpointHandler()
    saved = handler.metadata(folder / "state").tree
    names = list(named(saved))
    leaves = [wanted.get(name.removeprefix(prefix)) for name in names]
    structure = jax.tree.structure(saved)
    restored = handler.restore(
        folder / "state",
        args=ocp.args.PyTreeRestore(
            jax.tree.unflatten(structure, [ocp.PLACEHOLDER if x is None else x for x in leaves]),
            restore_args=jax.tree.unflatten(structure, [_restore_args(leaf) for leaf in leaves]),
        ),
    )
    values = dict(zip(names, jax.tree.leaves(restored), strict=True))
    return {name: values[prefix + name] for name in wanted}


def read_together(folder: epath.Path, read: Callable[[], Any]) -> Any:
    """Runs `read` on every process; if it fails on one, all raise `CheckpointError`."""
    result, error = None, None
    try:
        result = read()
    except (InputError, MemoryError, jax.errors.JaxRuntimeError):
        raise  # the user's mistake or the device's trouble, not damage
    except Exception as caught:  # Orbax and TensorStore raise anything, bare Exception included
        error = caught
    everywhere = error is None
    if jax.process_count() > 1:
        everywhere = bool(np.all(multihost_utils.process_allgather(np.array(everywhere))))
    if everywhere:
        return result
    why = reason(error) if error else "another process could not read it"
    raise CheckpointError(f"the checkpoint {folder} is damaged: {why}") from error


def check_same(
    folder: epath.Path, saved: Mapping[str, Any], wanted: Mapping[str, Any], *, cast: bool = False
) -> None:
    """Raises InputError naming where the arrays of two trees differ.

    Args:
      folder: the step folder, for the message.
      saved: name → leaf with shape and dtype, as in the checkpoint.
      wanted: the same, as the run has it.
      cast: whether one floating-point type may stand for another.
    """
    lines = differences(saved, wanted, cast=cast)
    if lines:
        more = [f"  and {len(lines) - 3} more"] if len(lines) > 3 else []
        heading = f"the checkpoint {folder} does not fit:"
        raise InputError("\n".join([heading, *lines[:3], *more]))


def differences(
    saved: Mapping[str, Any], wanted: Mapping[str, Any], *, cast: bool = False
) -> list[str]:
    """Returns a line for each name whose leaves differ; see `check_same`."""
    return [
        f"  {name}: saved {_show(saved.get(name))}, wanted {_show(wanted.get(name))}"
        for name in {**wanted, **saved}
        if not _same(saved.get(name), wanted.get(name), cast=cast)
    ]


def reason(error: Exception) -> str:
    """Returns an exception in a few words: TensorStore's names the paths first, the cause last."""
    text = (str(error) or "no message").splitlines()[0]
    text = re.split(r" \[(?:tensorstore_spec|source|os_error)| See full TensorStore", text)[0]
    return f"{type(error).__name__}: {text if len(text) <= 120 else '…' + text[-120:]}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ` (nearest: …)`, or nothing if no known name is near."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (nearest: {matches[0]})" if matches else ""


def match(
    wanted: Iterable[str], saved: Iterable[str], mapping: Sequence[Rule], *, where: str
) -> dict[str, str]:
    """Returns wanted name → saved name of all that are to be restored; see `load_params`.

    Args:
      wanted: names of the parameters that a model has.
      saved: names of those that a checkpoint has.
      mapping: the rules.
      where: what the checkpoint is called in messages.
    """
    wanted, saved = list(wanted), set(saved)
    targets = {name: source_of(name, mapping) for name in wanted}
    sources = {name: source for name, source in targets.items() if source is not None}
    left_out = [pattern for side, pattern in mapping if side is None and pattern is not None]
    missing = [
        (name if source == name else f"{name} (as {source})") + nearest(source, saved)
        for name, source in sources.items()
        if source not in saved
    ]
    unused = [
        name + nearest(name, targets)
        for name in sorted(saved.difference(sources.values()))
        if not any(re.fullmatch(pattern, name) for pattern in left_out)
    ]
    idle = [rule for rule in mapping if not _matches(rule, wanted, saved)]
    if missing or unused or idle:
        lines = [f"the names of parameters do not fit the checkpoint {where}"]
        if idle:
            rules = ", ".join(map(str, idle))
            lines += [f"Checkpoints.restore_mapping, rules that match no name: {rules}"]
        lines += [f"wanted, not saved: {_listed(missing)}"] if missing else []
        lines += [f"saved, not wanted: {_listed(unused)}"] if unused else []
        lines += [
            "Checkpoints.restore_mapping takes pairs of patterns: "
            '("wanted", "saved"), ("wanted", None) or (None, "saved")'
        ]
        raise InputError("\n".join(lines), field="Checkpoints.restore_mapping")
    return sources


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _matches(rule: Rule, wanted: Iterable[str], saved: Iterable[str]) -> bool:
    """Whether a rule is about any name at all: its pattern is for saved names, or wanted ones."""
    side, names = (rule[1], saved) if rule[0] is None else (rule[0], wanted)
    return any(re.fullmatch(side or "", name) for name in names)


def source_of(name: str, mapping: Sequence[Rule]) -> str | None:
    """Returns the saved name that a wanted one is read from; None if it stays fresh."""
    for pattern, replacement in mapping:
        if pattern is not None and (match := re.fullmatch(pattern, name)):
            return None if replacement is None else match.expand(replacement)
    return name


def _restore_args(leaf: Any) -> ocp.RestoreArgs:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=getattr(leaf, "dtype", None))
    return ocp.ArrayRestoreArgs(
        restore_type=jax.Array, sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype
    )


def _same(saved: Any, wanted: Any, *, cast: bool) -> bool:
    if saved is None or wanted is None or tuple(saved.shape) != tuple(wanted.shape):
        return False
    floats = [jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating) for leaf in (saved, wanted)]
    return np.dtype(saved.dtype) == np.dtype(wanted.dtype) or (cast and all(floats))


def _show(leaf: Any) -> str:
    return "nothing" if leaf is None else f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"


def _nest(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def find_step_folder(folder: epath.PathLike) -> epath.Path:
    """Takes a step folder as it is, and finds the newest one of the folders that hold them.

    Raises:
      InputError: if there is none.
    """
    root = absolute(folder)
    if (root / "state").exists():
        return root
    steps = saved_steps(root)
    if steps:
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
