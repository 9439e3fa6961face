"""Declaration of rows, and the host half of an objective, which prepares them."""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np

from t5lite.errors import InputError, require_integer, unknown

Example = Mapping[str, np.ndarray]
Examples = Iterator[Example]
Prepared = Iterator[dict[str, np.ndarray]]
Rows = dict[str, np.ndarray]
Lengths = Mapping[str, int]  # of features, in tokens
Kind = Literal["tokens", "aligned", "per_example"]


@dataclasses.dataclass(frozen=True)
class RowSpec:
    """Declaration of one array that an objective prepares.

    Attributes:
      length: positions of a row; for `per_example` the most examples that a row may hold.
      inner: dimensions of the value at each position; () for a number.
      dtype: NumPy's name, of rows and of batches.
      kind: `tokens`, a sequence `[n, *inner]` whose rows have segment ids; `aligned`, a value for
        each token of the array `along`; `per_example`, one value `[*inner]` of an example.
      along: for `aligned`, the name of the tokens.
    """

    length: int
    inner: tuple[int, ...] = ()
    dtype: str = "int32"
    kind: Kind = "tokens"
    along: str | None = None

    def __post_init__(self) -> None:
        if (self.kind == "aligned") != (self.along is not None):
            raise InputError(
                f"RowSpec.along is {self.along!r}: arrays of kind 'aligned' name the tokens that "
                "they lie along, and no others do",
                field="RowSpec.along",
            )
        if self.kind not in (kinds := get_args(Kind)):
            raise unknown("kind of RowSpec", self.kind, kinds, field="RowSpec.kind")
        require_integer("RowSpec.length", self.length)
        if not isinstance(self.inner, tuple):
            raise InputError(
                f"RowSpec.inner is {self.inner!r}: must be a tuple of sizes, () for a number",
                field="RowSpec.inner",
            )
        try:
            np.dtype(self.dtype)
        except TypeError as error:
            raise InputError(
                f"RowSpec.dtype is {self.dtype!r}: must be NumPy's name of a type, such as int32",
                field="RowSpec.dtype",
            ) from error

    @property
    def holds_ids(self) -> bool:
        """Whether it is a sequence of token ids."""
        return self.kind == "tokens" and not self.inner and np.dtype(self.dtype).kind in "iu"

    def zeros(self, num_rows: int, *, packed: bool) -> np.ndarray:
        """Returns `[num_rows, length, *inner]`; without packing a row has one per-example value."""
        length = 1 if self.kind == "per_example" and not packed else self.length
        return np.zeros((num_rows, length, *self.inner), self.dtype)


def token_names(specs: Mapping[str, RowSpec]) -> list[str]:
    """Returns the names of the arrays of kind `tokens`."""
    return [name for name, spec in specs.items() if spec.kind == "tokens"]


def feature_length(lengths: Lengths, name: str, *, at_least: int = 2) -> int:
    """Returns a feature's length; raises InputError if it is missing or less than `at_least`."""
    if name not in lengths:
        raise InputError(
            f"TASK_FEATURE_LENGTHS has no {name!r} (it has {sorted(lengths)}): "
            "give each feature of the objective a length"
        )
    if lengths[name] < at_least:
        raise InputError(
            f"TASK_FEATURE_LENGTHS[{name!r}] is {lengths[name]}: it must be at least {at_least}"
        )
    return lengths[name]


class HostHalf:
    """Host half of an objective, in NumPy: the part that data pipelines see.

    Class attributes:
      features: names of the arrays that are read from examples, each with a length.
      packable: whether rows may hold several examples.
      whole_texts: whether `prepare` divides texts longer than a row, which must arrive whole.
      joins_texts: whether an example may join several texts.
      like_lengths: whether unpacked rows come in batches of like lengths.
      loss_fields: fields of a dataclass that do not affect `prepare`, caches and data positions.
      former_name: of the class, in the caches and data positions of earlier versions.
    """

    features: ClassVar[tuple[str, ...]]
    packable: ClassVar[bool] = True
    whole_texts: ClassVar[bool] = False
    joins_texts: ClassVar[bool] = False
    like_lengths: ClassVar[bool] = False
    loss_fields: ClassVar[tuple[str, ...]] = ()
    former_name: ClassVar[str | None] = None

    def rows(self, lengths: Lengths) -> dict[str, RowSpec]:
        """Returns the arrays that `prepare` yields; here, the features as tokens."""
        return {name: RowSpec(feature_length(lengths, name, at_least=1)) for name in self.features}

    def prepare(
        self, examples: Examples, *, lengths: Lengths, vocabulary: Any, rng: np.random.Generator
    ) -> Prepared:
        """Yields trainable examples, an array for each of `rows(lengths)`; tokens are not empty.

        A resumed run repeats this: it must depend on its arguments alone, read `examples` one by
        one and draw from `rng` only.

        Args:
          examples: tokenised examples: arrays by feature.
          lengths: of each feature, in tokens, EOS included.
          vocabulary: see `data.Vocabulary`; None if the data are ids alone.
          rng: of all randomness.
        """
        raise NotImplementedError(f"{type(self).__name__}.prepare")

    def batch(self, rows: Rows) -> Rows:
        """Returns rows as `[batch, ...]` arrays under the names of `Objective.axes`.

        Args:
          rows: for each of `rows(lengths)` an array `[batch, length, *inner]` under its name, 0 on
            padding; for tokens also `name_segment_ids` `[batch, length]` int32, 0 on padding, 1..
            on the examples of the row, and where rows hold one example each `name_lengths`
            `[batch]` int32. The value of segment i of a `per_example` array is number i - 1. Rows
            may be zeros.
        """
        return rows

    def for_features(self, add_eos: Mapping[str, bool]) -> Self:
        """Returns the objective for a task whose features end with EOS or do not."""
        del add_eos
        return self

    def alike(self, other: Any) -> Self:
        """Returns the objective for the model of the `other` objective."""
        del other
        return self

    def identity(self) -> dict[str, Any]:
        """Returns, as JSON, the class and the fields that decide the prepared rows."""
        fields: tuple[Any, ...] = dataclasses.fields(self) if dataclasses.is_dataclass(self) else ()
        values = {
            field.name: getattr(self, field.name)
            for field in fields
            if field.name not in self.loss_fields and getattr(self, field.name) is not None
        }
        name = self.former_name or type(self).__qualname__
        return {"class": name} | json.loads(json.dumps(values, default=_text))

    @property
    def first_id(self) -> int | None:
        """The token that a decoder reads first, which `prepare` leaves out of texts, or None."""
        return None


def _text(value: Any) -> str:
    """Returns an object's `repr` without its address."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
