"""Tuning: splits trees like the parameters (shapes, axes, shardings too) into trained and frozen.

The frozen tree, `TrainState.frozen["params"]`, has neither gradients nor optimizer state.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from t5lite.errors import InputError, unknown
from t5lite.training.segments import Segments, evaluate

Tree = Any
FILE = "tuning.json"
_LAYER = re.compile(r"(?:(?P<stack>.*)/)?(?P<part>first|layers|remainder)/block_(?P<block>\d+)/")


class Tuning:
    """Chooses the trained parameters of a model; subclasses are dataclasses with JSON-able fields.

    `merge` is the inverse of `split`. `tuning.json` keeps a subclass by its name.
    """

    registry: ClassVar[dict[str, type["Tuning"]]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__name__.startswith("_"):
            return
        first = Tuning.registry.get(cls.__name__, cls)
        if first.__module__ != cls.__module__:
            raise InputError(
                f"{cls.__module__}.{cls.__name__}: a tuning of this name is defined by "
                f"{first.__module__}, and {FILE} refers to tunings by name; rename yours"
            )
        Tuning.registry[cls.__name__] = cls

    def bind(self, axes: Tree, shapes: Tree) -> "Tuning":
        """Returns the tuning of one model, whose `split` and `merge` take any tree like it.

        Args:
          axes: logical axis names of all parameters, a `PartitionSpec` each.
          shapes: all parameters, or their shapes.
        Raises: InputError if a field fits no parameter, or nothing is left to train.
        """
        del axes, shapes
        return self

    def split(self, tree: Tree) -> tuple[Tree, Tree]:
        """Returns the trained and the frozen part of a tree like the parameters, nested dicts."""
        raise NotImplementedError

    def merge(self, trained: Tree, frozen: Tree) -> Tree:
        """Returns the whole tree of a trained and a frozen part."""
        raise NotImplementedError

    def lift(self, fn: Callable[[Tree], Tree]) -> Callable[[Tree, Tree], Tree]:
        """Returns `fn`, a function of all parameters, as one of the trained and the frozen part."""
        return lambda trained, frozen: fn(self.merge(trained, frozen))

    def to_json(self) -> dict[str, Any]:
        """Returns name and fields, valid JSON."""
        fields: dict[str, Any] = dataclasses.asdict(self) if dataclasses.is_dataclass(self) else {}
        return {"tuning": type(self).__name__, **fields}


@dataclasses.dataclass(frozen=True)
class Everything(Tuning):
    """Trains all parameters."""

    def split(self, tree: Tree) -> tuple[Tree, Tree]:
        return tree, {}

    def merge(self, trained: Tree, frozen: Tree) -> Tree:
        del frozen
        return trained


@dataclasses.dataclass(frozen=True)
class ByPath(Tuning):
    """Trains the parameters whose path matches, and freezes all others.

    Paths look like `encoder/layers/block_0/attention/query/kernel`. A parameter is trained if
    `include` is empty or one of its patterns is found in the path (`re.search`), no pattern of
    `exclude` is found, and its layer is one of `layers`. A stacked parameter, which holds many
    layers in one array, is split along its `layers` axis, and so is the scan over the stack: frozen
    layers have no gradients, and those below all trained parameters no backward pass.

    Args:
      include: regular expressions of trained paths; a single one may be given as a string.
      exclude: regular expressions of frozen paths.
      layers: `(start, stop)` of the trained layers of each stack, from 0; negative numbers count
        from its end, None is its beginning or end. Parameters outside of layers, such as
        embeddings, go by their path alone.
    Raises: InputError if a pattern or a range is invalid.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    layers: tuple[int | None, int | None] | None = None

    def __post_init__(self) -> None:
        for field in ("include", "exclude"):
            value = getattr(self, field)
            patterns = (value,) if isinstance(value, str) else tuple(value)
            object.__setattr__(self, field, patterns)
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except (re.error, TypeError) as error:
                    raise InputError(
                        f"ByPath.{field} = {pattern!r}: not a regular expression ({error})",
                        field=f"ByPath.{field}",
                    ) from error
        if self.layers is not None:
            ends = tuple(self.layers) if isinstance(self.layers, Sequence) else ()
            valid = [end is None or type(end) is int for end in ends]
            if len(ends) != 2 or not all(valid):
                raise InputError(
                    f"ByPath.layers = {self.layers!r}: must be a pair of layer numbers "
                    "(start, stop), of which either may be None",
                    field="ByPath.layers",
                )
            object.__setattr__(self, "layers", ends)

    def bind(self, axes: Tree, shapes: Tree) -> Tuning:
        names, leaves = named(axes), named(shapes)
        for field in ("include", "exclude"):
            for pattern in getattr(self, field):
                if not any(re.search(pattern, name) for name in leaves):
                    raise InputError(
                        f"ByPath.{field} = {pattern!r}: matches no parameter; "
                        f"they look like {', '.join(list(leaves)[:3])}",
                        field=f"ByPath.{field}",
                    )
        stacks = _stacks(names, leaves)
        cuts = {name: self._cut(name, names[name], stacks) for name in leaves}
        self._check_layers(stacks)
        if not any(cuts.values()):
            raise InputError(
                f"ByPath(include={self.include}, exclude={self.exclude}, layers={self.layers}): "
                "freezes every parameter; leave one to train",
                field="ByPath.include",
            )
        return _Bound(self, {name: cut for name, cut in cuts.items() if cut})

    def split(self, tree: Tree) -> tuple[Tree, Tree]:
        raise TypeError("ByPath: call bind(axes, shapes) before split")

    def merge(self, trained: Tree, frozen: Tree) -> Tree:
        raise TypeError("ByPath: call bind(axes, shapes) before merge")

    def _check_layers(self, stacks: "Mapping[str, _Stack]") -> None:
        """Raises an InputError if `layers` holds no layer of any stack."""
        counts = {stack: layers.num_layers for stack, layers in stacks.items()}
        if self.layers is None or any(range(n)[slice(*self.layers)] for n in counts.values()):
            return
        layers = ", ".join(f"{stack} {count}" for stack, count in counts.items()) or "none"
        raise InputError(
            f"ByPath.layers = {self.layers}: holds no layer of the model, which has {layers}",
            field="ByPath.layers",
        )

    def _cut(self, name: str, axes: Sequence[Any], stacks: "Mapping[str, _Stack]") -> "_Cut | None":
        """Returns the trained slice of a parameter; None if it is frozen."""
        included = not self.include or any(re.search(pattern, name) for pattern in self.include)
        if not included or any(re.search(pattern, name) for pattern in self.exclude):
            return None
        match = _LAYER.match(name)
        if self.layers is None or match is None:
            return _WHOLE
        if match["part"] == "layers" and "layers" not in axes:
            raise InputError(
                f"ByPath.layers = {self.layers}: all layers share {name}; train or freeze them all",
                field="ByPath.layers",
            )
        stack = stacks[match["stack"]]
        numbers = stack.numbers(match["part"], int(match["block"]))
        trained = range(stack.num_layers)[slice(*self.layers)]
        chosen = [index for index, number in enumerate(numbers) if number in trained]
        if not chosen:
            return None
        if len(chosen) == len(numbers):
            return _WHOLE
        return _Cut([*axes].index("layers"), chosen[0], chosen[-1] + 1)


class _Cut(NamedTuple):
    """The trained slice of a parameter, along its `layers` axis."""

    axis: int
    start: int
    stop: int


_WHOLE = _Cut(0, 0, 0)


@dataclasses.dataclass
class _Stack:
    """Number of blocks in each part of a stack, see `models.StackSpec.location`."""

    first: int = 0
    pattern: int = 0
    periods: int = 0
    remainder: int = 0

    @property
    def num_layers(self) -> int:
        return self.first + self.pattern * self.periods + self.remainder

    def numbers(self, part: str, block: int) -> Sequence[int]:
        """Returns the layers whose parameters a block holds."""
        if part == "first":
            return (block,)
        if part == "remainder":
            return (self.num_layers - self.remainder + block,)
        return range(self.first + block, self.num_layers - self.remainder, self.pattern)


def _stacks(axes: Mapping[str, Any], leaves: Mapping[str, Any]) -> dict[str, _Stack]:
    stacks: dict[str, _Stack] = {}
    for name, leaf in leaves.items():
        if match := _LAYER.match(name):
            stack = stacks.setdefault(match["stack"], _Stack())
            field = "pattern" if match["part"] == "layers" else match["part"]
            setattr(stack, field, max(getattr(stack, field), int(match["block"]) + 1))
            if "layers" in (names := tuple(axes[name])):
                stack.periods = leaf.shape[names.index("layers")]
    return stacks


@dataclasses.dataclass(frozen=True)
class _Bound(Tuning):
    """`ByPath` of one model, with the trained slice of each parameter that is not wholly frozen."""

    tuning: ByPath
    cuts: Mapping[str, _Cut]

    def bind(self, axes: Tree, shapes: Tree) -> Tuning:
        return self.tuning.bind(axes, shapes)

    def split(self, tree: Tree) -> tuple[Tree, Tree]:
        trained, frozen = {}, {}
        for name, leaf in named(tree).items():
            cut = self.cuts.get(name)
            if cut is None:
                frozen[name] = leaf
            elif cut is _WHOLE:
                trained[name] = leaf
            else:
                trained[name], frozen[name] = _split_leaf(leaf, cut)
        return nest(trained), nest(frozen)

    def merge(self, trained: Tree, frozen: Tree) -> Tree:
        return self._merged(trained, frozen, _merge_leaves)

    def lift(self, fn: Callable[[Tree], Tree]) -> Callable[[Tree, Tree], Tree]:
        if all(cut is _WHOLE for cut in self.cuts.values()):
            return super().lift(fn)
        return lambda trained, frozen: evaluate(fn, self._merged(trained, frozen, _segments))

    def _merged(self, trained: Tree, frozen: Tree, join: Callable[[Any, Any, _Cut], Any]) -> Tree:
        ours, theirs = named(trained), named(frozen)
        shared = ours.keys() & theirs.keys()
        joined = {name: join(ours[name], theirs[name], self.cuts[name]) for name in shared}
        return nest(ours | theirs | joined)

    def to_json(self) -> dict[str, Any]:
        return self.tuning.to_json()


def _split_leaf(leaf: Any, cut: _Cut) -> tuple[Any, Any]:
    """Returns the trained layers of a stacked parameter and the others, both in order."""
    axis, start, stop = cut.axis, cut.start, cut.stop
    if not hasattr(leaf, "dtype"):  # axis names or a sharding, which both parts share
        return leaf, leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        size = stop - start
        return _resized(leaf, cut, size), _resized(leaf, cut, leaf.shape[axis] - size)
    xp: Any = np if isinstance(leaf, np.ndarray) else jnp
    before, trained, after = (
        leaf[(slice(None),) * axis + (part,)]
        for part in (slice(start), slice(start, stop), slice(stop, None))
    )
    return trained, xp.concatenate([before, after], axis)


def _merge_leaves(trained: Any, frozen: Any, cut: _Cut) -> Any:
    axis, start = cut.axis, cut.start
    if not hasattr(trained, "dtype"):
        return trained
    if isinstance(trained, jax.ShapeDtypeStruct):
        return _resized(trained, cut, trained.shape[axis] + frozen.shape[axis])
    xp: Any = np if isinstance(trained, np.ndarray) else jnp
    before, after = (
        frozen[(slice(None),) * axis + (part,)] for part in (slice(start), slice(start, None))
    )
    return xp.concatenate([before, trained, after], axis)


def _segments(trained: jax.Array, frozen: jax.Array, cut: _Cut) -> Any:
    if cut.axis != 0:
        return _merge_leaves(trained, frozen, cut)
    parts = frozen[: cut.start], trained, frozen[cut.start :]
    return Segments(tuple(part for part in parts if len(part)))


def _resized(leaf: jax.ShapeDtypeStruct, cut: _Cut, size: int) -> jax.ShapeDtypeStruct:
    shape = (*leaf.shape[: cut.axis], size, *leaf.shape[cut.axis + 1 :])
    return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=leaf.sharding)


def named(tree: Tree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def from_json(document: Mapping[str, Any]) -> Tuning:
    """Returns the tuning that `to_json` wrote; other documents, unknown classes and unknown fields
    raise an InputError."""
    name = document.get("tuning") if isinstance(document, Mapping) else None
    if not isinstance(name, str):
        raise InputError(f"{FILE} names no tuning: {document!r}")
    if name not in Tuning.registry:
        error = unknown("tuning", name, Tuning.registry)
        raise InputError(f"{error}; import the module that defines it first", field="tuning")
    try:
        return Tuning.registry[name](**{k: v for k, v in document.items() if k != "tuning"})
    except TypeError as error:
        raise InputError(
            f"{FILE}, tuning = {name!r}: {error}\nuse the version of t5lite that wrote it",
            field="tuning",
        ) from error


def write_tuning(folder: epath.PathLike, tuning: Tuning) -> None:
    text = json.dumps(tuning.to_json(), indent=2)
    (epath.Path(folder) / FILE).write_text(text + "\n")


def read_tuning(folder: epath.PathLike) -> Tuning:
    """Returns the tuning of the run in a model_dir; `Everything()` of one without `tuning.json`.

    Raises: InputError a damaged file, or see `from_json`.
    """
    path = epath.Path(folder) / FILE
    if not path.exists():
        return Everything()
    try:
        document = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    return from_json(document)
