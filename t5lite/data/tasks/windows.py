"""Windows of raw examples as TensorFlow datasets."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from t5lite.data.importing import import_seqio

INFINITE = -1  # the cardinality of a TensorFlow dataset that repeats for ever
# The count of `map_over_dataset`'s seeds is a global of SeqIO's.
SEQIO_SEED = threading.Lock()
_FIRST_SEED = 2**40  # the count starts here; seeds that a preprocessor sets itself are smaller


class Window(NamedTuple):
    """Raw examples that are preprocessed together."""

    rows: np.ndarray  # `[examples, tensors]` object, serialised
    spec: Any  # TensorFlow's element spec of a raw example
    seed: int  # of `seqio.map_over_dataset`
    origin: Callable[[np.ndarray], str]  # where some rows were read, for messages

    def part(self, first: int, last: int) -> "Window":
        return self._replace(rows=self.rows[first:last])

    def tensors(self) -> tuple[Any, list[Any]]:
        """Returns the seed, int64, and a column of strings `[examples]` for each tensor."""
        import tensorflow as tf

        columns = [tf.constant(list(column), tf.string) for column in self.rows.T]
        return tf.constant(self.seed, tf.int64), columns


@contextlib.contextmanager
def map_seeds(seed: Any) -> Iterator[None]:
    """Adds `seed`, an int64 tensor, to every seed of `seqio.map_over_dataset`.

    SeqIO's are Python integers and thus constants of the graph: another window would need another
    trace. The sums are what `seqio.utils.map_seed_manager(seed)` would give.
    """
    utils = import_seqio().utils
    import tensorflow as tf

    random = tf.data.Dataset.random

    def seeded(*args: Any, **options: Any) -> Any:
        if args and isinstance(args[0], int | np.integer) and args[0] >= _FIRST_SEED:
            args = (seed + int(args[0] - _FIRST_SEED), *args[1:])
        return random(*args, **options)

    with SEQIO_SEED:
        outer, utils._NEXT_MAP_SEED = utils._NEXT_MAP_SEED, _FIRST_SEED
        tf.data.Dataset.random = staticmethod(seeded)
        try:
            yield
        finally:
            tf.data.Dataset.random = staticmethod(random)
            utils._NEXT_MAP_SEED = outer


def unoptimised(dataset: Any) -> Any:
    """Returns a dataset without optimisation, which takes 20 ms for windows that may be small."""
    import tensorflow as tf

    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    options.experimental_optimization.inject_prefetch = False
    return dataset.with_options(options)


def split_rows(values: Any) -> list[np.ndarray]:
    """Returns the rows of texts `[n]` or sequences `[n, length]`, dense or ragged."""
    if hasattr(values, "row_splits"):
        return np.split(values.values.numpy(), values.row_splits.numpy()[1:-1])
    return list(values.numpy())


def is_text(tensor: Any) -> bool:
    """Whether a tensor, or its spec, is a single string."""
    return tensor is not None and tensor.dtype.name == "string" and tensor.shape.rank == 0
