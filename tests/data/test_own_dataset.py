"""A user's own dataset is one small class, and has all that the others have."""

import dataclasses
import json
import threading

import numpy as np
import pytest
from small_data import Copy, Plain, close, make, open_all, same, take

from t5lite.data import Component, Dataset, MixtureData, NoSplit, NumberedSource
from t5lite.data.batches import merge_states


class Squares(NumberedSource):
    """Numbers and their squares, in bits."""

    def __init__(self, name, first, end):
        self.name, self.num_examples, self._first = name, end - first, first

    def examples(self, window, *, seed):
        for number in (window + self._first).tolist():
            bits = [[int(bit) + 1 for bit in bin(each)[2:]] for each in (number, number**2)]
            yield {"inputs": np.array(bits[1])[:16], "targets": np.array(bits[0])[:8]}


@dataclasses.dataclass(frozen=True, eq=False)
class SquareData(Dataset):
    """Square roots."""

    most: int = 0

    def vocabulary(self):
        return None

    def describe(self):
        return f"square roots up to {self.most}"

    def components(self, split, objective):
        if split not in ("train", "validation"):
            raise NoSplit(f"SquareData has no split {split!r}")
        first, end = (1, self.most) if split == "train" else (self.most, self.most + 20)
        return [Component(Squares(f"squares:{split}", first, end), 1.0, objective)]


def squares(**changes):
    options = {"lengths": {"inputs": 16, "targets": 8}, "batch_size": 16, "most": 120}
    return SquareData(**(options | {"window": 10, "num_shards": 8} | changes))


@pytest.mark.parametrize("pack", [True, False])
def test_it_is_read_by_any_number_of_processes_and_resumes(pack):
    whole, started = (open_all(squares(pack=pack), count) for count in (1, 4))
    same(take(started, 9), take(whole, 9))
    state = json.loads(json.dumps(merge_states(each.state_dict() for each in started)))
    continued = open_all(squares(pack=pack), 2)
    for each in continued:
        each.load_state_dict(state)
    same(take(continued, 5), take(whole, 5))
    close(whole + started + continued)


def test_an_epoch_and_validation_have_every_example_once():
    data = squares(pack=False, num_shards=1, batch_size=1)
    expected = sorted(
        each["targets"].tolist() for each in Squares("", 1, 120).examples(np.arange(119), seed=0)
    )
    batches = data.train_batches(Plain(), seed=0)
    seen = [next(batches)["model_targets"][0] for _ in range(119)]
    batches.close()
    assert sorted(row[row > 0].tolist() for row in seen) == expected
    assert len(list(data.validation_batches(Plain()))) == 20
    assert len(data.examples(Plain(), split="train", count=7, seed=0)) == 7


def test_it_is_part_of_a_mixture():
    lengths = {"inputs": 16, "targets": 8}
    mixed = MixtureData([squares(), make()], rates=[1, 1], lengths=lengths, batch_size=16)
    batches = mixed.train_batches(Copy(), seed=0)
    values = np.concatenate([next(batches)["model_inputs"].ravel() for _ in range(5)])
    batches.close()
    assert {1, 2} < set(values.tolist())


def test_only_sources_that_wait_are_read_in_threads():
    readers = set()

    class Observed(Squares):
        def examples(self, window, *, seed):
            readers.add(threading.current_thread().name.rpartition("_")[0])
            return super().examples(window, seed=seed)

    @dataclasses.dataclass(frozen=True, eq=False)
    class ObservedData(SquareData):
        waits: bool | None = None

        def components(self, split, objective):
            sources = [Observed("first", 1, 90), Observed("second", 90, 120)]
            if self.waits is not None:
                sources[0].waits = self.waits  # one of several is enough
            return [Component(source, 1.0, objective) for source in sources]

    seen = {}
    for waits in (None, False, True):
        readers.clear()
        options = {"lengths": {"inputs": 16, "targets": 8}, "batch_size": 16, "num_shards": 8}
        batches = ObservedData(**options, waits=waits).train_batches(Copy(), seed=0)
        seen[waits] = take([batches], 9)
        batches.close()
        assert readers == ({"t5lite-shards"} if waits else {""}), waits
    same(seen[True], seen[None])
    same(seen[False], seen[None])
