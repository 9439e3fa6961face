import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.evaluation import Means, collect


def test_means_are_of_all_batches_at_once():
    means = Means()
    means.add({"loss": (6.0, 2.0), "accuracy": (1.0, 2.0)})
    means.add({"loss": (1.0, 8.0)})
    assert means.means() == {"loss": 0.7, "accuracy": 0.5}


def test_nothing_weighed_has_no_mean():
    means = Means()
    means.add({"loss": (0.0, 0.0), "rare": (np.float32(1), np.float32(4))})
    found = means.means()
    assert found["rare"] == 0.25
    assert np.isnan(found["loss"])


def test_small_batches_after_a_large_sum_still_count():
    means = Means()
    means.add({"loss": (np.float32(2**25), np.float32(2**25))})
    for _ in range(100):
        means.add({"loss": (np.float32(1), np.float32(0))})
    assert means.means()["loss"] == 1 + 100 / 2**25


@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_batch_is_fetched_only_after_the_next_is_dispatched(monkeypatch, count):
    events = []

    def dispatched():
        for number in range(count):
            events.append(f"dispatch {number}")
            yield {"loss": (jnp.float32(number), jnp.float32(1))}

    device_get = jax.device_get

    def fetch(tree):
        events.append(f"fetch {int(device_get(tree)['loss'][0])}")
        return device_get(tree)

    monkeypatch.setattr(jax, "device_get", fetch)
    means = collect(dispatched())
    steps = [[f"dispatch {n}"] + [f"fetch {n - 1}"] * (n > 0) for n in range(count)]
    assert events == [*itertools.chain(*steps), *[f"fetch {count - 1}"] * (count > 0)]
    assert means.means() == ({"loss": (count - 1) / 2} if count else {})
