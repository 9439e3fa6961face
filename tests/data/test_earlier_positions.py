"""Runs of earlier versions go on from their position in the data, and say if its order changed.

`earlier_positions.json` holds `Batches.state_dict` as commits d47a409 (0.1.0) and bb3d487 wrote it,
and of the second the examples delivered by then.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from small_data import Plain

from t5lite.data import ArrayData

EARLIER = json.loads((Path(__file__).parent / "earlier_positions.json").read_text())
LENGTHS = {"inputs": 16, "targets": 9}
COUNT = 3000

Copy = type("Copy", (Plain,), {"__qualname__": "Copy", "batch": lambda self, rows: rows})


def data(**changes):
    examples = [
        {"inputs": np.full(1 + i % 13, i + 1), "targets": np.full(1 + i % 7, 3)}
        for i in range(COUNT)
    ]
    return ArrayData(examples, lengths=LENGTHS, **({"batch_size": 16} | changes))


def examples_in(batch):
    """The examples of a batch, by the first token of each segment."""
    for tokens, segments in zip(batch["inputs"], batch["inputs_segment_ids"], strict=True):
        for segment in range(1, segments.max() + 1):
            yield int(tokens[segments == segment][0])


def test_rows_packed_by_first_fit_are_finished_and_no_example_is_lost_or_repeated():
    earlier = EARLIER["before first-fit decreasing"]
    batches = data().train_batches(Copy(), seed=5)
    with pytest.warns(UserWarning, match="packed rows in another order"):
        batches.load_state_dict(earlier["state"])
    assert batches.epoch == pytest.approx(len(earlier["examples"]) / COUNT, abs=0.05)
    seen = list(earlier["examples"])
    while batches.epoch < 0.85:
        seen += examples_in(next(batches))
    assert len(set(seen)) == len(seen)
    while batches.epoch < 2.2:  # packed shards are not at the same place
        seen += examples_in(next(batches))
    assert set(Counter(seen).values()) == {2, 3}
    assert len(set(seen)) == COUNT
    batches.close()


def test_an_upgraded_position_is_saved_and_resumed_within_the_block_of_then():
    batches, again = (data().train_batches(Copy(), seed=5) for _ in range(2))
    with pytest.warns(UserWarning, match="packed rows"):
        batches.load_state_dict(EARLIER["before first-fit decreasing"]["state"])
    next(batches)  # of blocks of then
    again.load_state_dict(json.loads(json.dumps(batches.state_dict())))
    for _ in range(9):
        for expected, resumed in zip(next(batches).values(), next(again).values(), strict=True):
            np.testing.assert_array_equal(resumed, expected)
    batches.close()
    again.close()


@pytest.mark.parametrize(
    ("version", "batch_size", "delivered"),
    [("0.1.0", 16, 869), ("0.1.0, batch_size 128", 128, 4928)],
)
def test_a_position_of_another_order_resumes_at_the_same_epoch(version, batch_size, delivered):
    state = EARLIER[version]["state"]
    batches = data(batch_size=batch_size).train_batches(Copy(), seed=5)
    with pytest.warns(UserWarning, match="goes on at the same epoch"):
        batches.load_state_dict(state)
    # Where num_shards is left open, a run keeps its own: 64 at most then, 1,024 now.
    assert batches.state_dict()["data"]["num_shards"] == len(state["shards"])
    assert len(next(batches)["inputs"]) == batch_size
    assert batches.epoch == pytest.approx(delivered / COUNT, abs=0.1)
    batches.close()
