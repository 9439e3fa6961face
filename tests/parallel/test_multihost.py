"""What processes tell each other: alone, and as two whose exchange is played."""

import json

import jax
import numpy as np
from jax.experimental import multihost_utils

from t5lite.parallel import gather


def test_a_single_process_gathers_its_value():
    value = {"shards": {"0": [1, 2]}}
    assert gather(value) == [value]


def test_values_of_different_sizes_come_in_the_order_of_the_processes(monkeypatch):
    values = [{"at": 3}, {"at": 12345, "text": "naïve 東京"}, []]
    mine = 1

    def allgather(array):
        """Gives every process's array; those of the others are known to be like this one's."""
        if array.ndim == 0:
            assert array == len(encoded[mine])
            return np.asarray([len(text) for text in encoded], np.int32)
        assert bytes(array[: len(encoded[mine])]) == encoded[mine]
        assert len(array) == max(map(len, encoded))  # arrays are exchanged in one size
        return np.stack(
            [np.frombuffer(text.ljust(len(array), b"\xff"), np.uint8) for text in encoded]
        )

    encoded = [json.dumps(value).encode() for value in values]
    monkeypatch.setattr(jax, "process_count", lambda: len(values))
    monkeypatch.setattr(multihost_utils, "process_allgather", allgather)
    assert gather(values[mine]) == values
