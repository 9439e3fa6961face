"""No flipped bit passes for what was saved, whoever saved it on whatever mesh."""

import gc
import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5lite.training import checksums as module
from t5lite.training.checkpoints import CheckpointError, Checkpoints
from t5lite.training.checksums import checksums
from t5lite.training.restore import load_params

pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True, scope="module")
def collected():
    """What is left behind is collected here, where its warnings are expected."""
    yield
    gc.collect()


RNG = np.random.default_rng(0)
ARRAYS = {
    "float32": RNG.standard_normal((8, 12)).astype(np.float32),
    "bfloat16": RNG.standard_normal((4, 8, 3)).astype(jnp.bfloat16),
    "int32": np.int32(-7),
    "int8": RNG.integers(-9, 9, (16, 4)).astype(np.int8),
    "bool": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
}


def by_definition(array):
    size = min(array.dtype.itemsize, 4)
    words = [int(word) for word in np.frombuffer(array.tobytes(), f"u{size}")]
    return [sum(words) % 2**32, sum(i * word for i, word in enumerate(words)) % 2**32]


@pytest.mark.parametrize("location", ["host", "device"])
def test_a_checksum_is_the_same_on_every_mesh(location, monkeypatch):
    monkeypatch.setattr(module, "_in_host_memory", lambda block: location == "host")
    expected = {name: by_definition(array) for name, array in ARRAYS.items()}
    if location == "host":
        assert checksums(ARRAYS) == expected
        long = RNG.standard_normal((3, 5))
        assert checksums({"x": long}) == {"x": by_definition(long)}
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))
    for name, spec in (
        *((name, PartitionSpec()) for name in ARRAYS),
        ("float32", PartitionSpec("b")),
        ("float32", PartitionSpec("a", "b")),
        ("bfloat16", PartitionSpec("a", "b")),
        ("int8", PartitionSpec(None, "b")),
    ):
        placed = jax.device_put(ARRAYS[name], NamedSharding(mesh, spec))
        assert checksums({name: placed}) == {name: expected[name]}


def test_a_flipped_bit_or_exchanged_elements_change_a_checksum():
    array = ARRAYS["float32"]
    before = checksums({"x": array})
    for bit in range(0, array.nbytes * 8, 97):
        changed = bytearray(array.tobytes())
        changed[bit // 8] ^= 1 << bit % 8
        assert checksums({"x": np.frombuffer(changed, np.float32).reshape(8, 12)}) != before
    assert checksums({"x": array[::-1]}) != before


# Checkpoints.

STATE = {
    "params": {name: array for name, array in ARRAYS.items() if array.size > 2},
    "step": np.int32(7),
}
WANTED = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), STATE)
PROGRESS = {"data": {"position": [12, 2**40], "share": 0.1}, "name": "Zoë"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints().open(folder) as checkpointer:
        for step in (1, 2):
            state = jax.tree.map(lambda leaf, step=step: leaf if step == 2 else leaf * 0, STATE)
            checkpointer.save(step, jax.tree.map(jnp.asarray, state), progress=PROGRESS)
    return folder


def flips(folder, count):
    """Flips single bits of every file, one at a time, and yields where."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        raw = path.read_bytes()
        bits = range(len(raw) * 8)
        for bit in random.Random(0).sample(bits, min(count, len(bits))):
            changed = bytearray(raw)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            yield f"{path.relative_to(folder)}, bit {bit}"
        path.write_bytes(raw)


@pytest.mark.parametrize("count", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_every_flipped_bit_of_a_checkpoint_is_noticed_or_harmless(saved, tmp_path, count):
    folder = shutil.copytree(saved, tmp_path / "run")
    noticed = 0
    with Checkpoints().open(folder, warn=lambda text: None) as checkpointer:
        for location in flips(folder / "checkpoints" / "2", count):
            try:
                restored = checkpointer.restore_step(2, WANTED)
            except CheckpointError:
                noticed += 1
                continue
            assert restored.progress == PROGRESS, location
            jax.tree.map(
                lambda a, b, location=location: np.testing.assert_array_equal(
                    a, b, err_msg=location
                ),
                restored.state,
                STATE,
            )
    assert noticed > 2 * count


def largest_data_file(step):
    files = [path for path in step.rglob("d/*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def test_a_flipped_bit_falls_back_to_the_checkpoint_before(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "run")
    path = largest_data_file(folder / "checkpoints" / "2" / "state")
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)
    messages = []
    with Checkpoints().open(folder, warn=messages.append) as checkpointer:
        assert checkpointer.restore(WANTED).step == 1
    (message,) = messages
    assert "checkpoints/2 is damaged" in message
    assert "is not what was saved" in message or "Error" in message
    # Whoever reads parameters alone, in whatever dtype, is told too.
    for like in (None, jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), STATE["params"])):
        with pytest.raises(CheckpointError, match="is damaged"):
            load_params(folder, like)


def test_a_checkpoint_without_checksums_is_read_without_complaint(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "run")
    path = folder / "checkpoints" / "2" / "progress" / "metadata"
    document = json.loads(path.read_text())
    assert document["checksums"].keys() >= {"params/float32", "step"}
    path.write_text(json.dumps({name: document[name] for name in ("progress", "metrics")}))
    with Checkpoints().open(folder, warn=pytest.fail) as checkpointer:
        restored = checkpointer.restore(WANTED)
    assert restored.step == 2
    assert load_params(folder).params.keys() == STATE["params"].keys()


def test_cast_arrays_are_compared_in_their_saved_dtype(saved, monkeypatch):
    monkeypatch.setattr("t5lite.training.restore._GROUP_BYTES", 1)  # one array at a time
    like = jax.tree.map(
        lambda a: jnp.zeros(
            a.shape, jnp.float16 if jnp.issubdtype(a.dtype, jnp.floating) else a.dtype
        ),
        STATE["params"],
    )
    params = load_params(saved, like).params
    for name, array in STATE["params"].items():
        np.testing.assert_array_equal(np.asarray(params[name]), array.astype(like[name].dtype))
