"""What the processes of a run tell each other."""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def gather(value: Any) -> list[Any]:
    """Returns every process's value, in the order of the processes, on all of them.

    Args:
      value: JSON-able; may differ between processes.
    """
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.int32(len(text))))
    padded = np.pad(text, (0, int(lengths.max()) - len(text)))
    texts = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:length].tobytes()) for row, length in zip(texts, lengths, strict=True)]
