import functools
import itertools
import json
import math
import os
import random
import weakref

import jax
import ml_dtypes
import numpy as np
import pytest

from t5lite.errors import InputError
from t5lite.interop.huggingface.file_format import DTYPES
from t5lite.interop.huggingface.files import INDEX, WEIGHTS, open_tensors, write_tensors


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "flags": rng.random(5) < 0.5,
        "tiny": rng.standard_normal((3, 1)).astype(ml_dtypes.bfloat16),
        "matrix": rng.standard_normal((7, 5)).astype(np.float32),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 4), np.float16),
        "ids": rng.integers(0, 1000, (9,)),
    }


def due(values):
    return [
        (name, jax.ShapeDtypeStruct(value.shape, value.dtype), lambda value=value: value)
        for name, value in values.items()
    ]


def assert_same(source, values):
    found = source.tensors()
    assert found.keys() == values.keys()
    for name, value in values.items():
        read = source.read(name)
        assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype)
        assert (read.shape, read.dtype) == (value.shape, value.dtype)
        assert read.tobytes() == value.tobytes()
        assert not read.flags.writeable


def raw_file(path, header, data=b""):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    return path


def entry(dtype, shape, start, stop):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_one_file_comes_back_mapped_and_aligned(tmp_path):
    seen = []
    files = write_tensors(
        tmp_path / "new", due(arrays()), progress=lambda *counts: seen.append(counts)
    )
    assert files == [tmp_path / "new" / WEIGHTS]
    assert [path.name for path in (tmp_path / "new").iterdir()] == [WEIGHTS]
    source = open_tensors(tmp_path / "new")
    assert_same(source, arrays())
    assert all(source.read(name).flags.aligned for name in arrays())
    assert isinstance(source.read("matrix"), np.memmap)
    assert_same(open_tensors(files[0]), arrays())
    total = sum(value.nbytes for value in arrays().values())
    assert seen[-1] == (total, total)
    assert len(seen) == len(arrays())
    assert all(one[0] <= other[0] for one, other in itertools.pairwise(seen))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_dtype_keeps_its_bits(tmp_path, dtype):
    bits = np.random.default_rng(0).integers(0, 256, 6 * dtype.itemsize, np.uint8)
    value = (bits % 2 if dtype == np.bool_ else bits).view(dtype).reshape(2, 3)
    write_tensors(tmp_path, due({"x": value}))
    assert_same(open_tensors(tmp_path), {"x": value})


def test_several_files_and_an_index(tmp_path):
    values = {f"layer.{n}": np.full((10,), n, np.float32) for n in range(7)} | {
        "large": np.ones((100,), np.float32)
    }
    files = write_tensors(tmp_path, due(values), max_file_bytes=100)
    assert [path.name for path in files] == [
        *(f"model-0000{n}-of-00005.safetensors" for n in range(1, 6)),
        INDEX,
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in files)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == 680
    assert index["weight_map"]["layer.3"] == "model-00002-of-00005.safetensors"
    assert_same(open_tensors(tmp_path), values)
    assert_same(open_tensors(tmp_path / INDEX), values)


def test_a_new_checkpoint_takes_an_older_ones_place(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for limit in (10**9, 40, 80, 10**9):
        values = arrays(limit % 7)
        write_tensors(tmp_path, due(values), max_file_bytes=limit)
        assert_same(open_tensors(tmp_path), values)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", WEIGHTS]


@pytest.mark.parametrize("limit", [10**9, 40])
def test_a_failure_leaves_what_was_there(tmp_path, limit):
    write_tensors(tmp_path, due(arrays()), max_file_bytes=limit)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail():
        raise KeyboardInterrupt

    broken = [*due(arrays(1)), ("last", jax.ShapeDtypeStruct((1,), np.float32), fail)]
    with pytest.raises(KeyboardInterrupt):
        write_tensors(tmp_path, broken, max_file_bytes=limit)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert_same(open_tensors(tmp_path), arrays())


def test_tensors_are_made_one_at_a_time_in_order(tmp_path):
    made = []

    def make(number):
        assert all(reference() is None for reference in made)
        value = np.full((4,), number, np.float32)
        assert len(made) == number
        made.append(weakref.ref(value))
        return value

    shape = jax.ShapeDtypeStruct((4,), np.float32)
    tensors = [(f"{n}", shape, functools.partial(make, n)) for n in range(5)]
    write_tensors(tmp_path, tensors, max_file_bytes=32)
    assert len(made) == 5


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match="x is complex64, which safetensors"):
        write_tensors(tmp_path, due({"x": np.zeros(2, np.complex64)}))
    with pytest.raises(InputError, match=r"is remote, .* give a local folder"):
        write_tensors("gs://bucket/model", due(arrays()))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write 227 bytes to .*choose another folder"):
        write_tensors(tmp_path / "file", due(arrays()))
    twice = [*due({"x": np.zeros(2)}), *due({"x": np.zeros(2)})]
    with pytest.raises(RuntimeError, match="internal"):
        write_tensors(tmp_path, twice)
    wrong = [("x", jax.ShapeDtypeStruct((3,), np.float32), lambda: np.zeros(2, np.float32))]
    with pytest.raises(RuntimeError, match="announced as float32"):
        write_tensors(tmp_path, wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_safetensors_library_reads_what_we_write(tmp_path):
    library = pytest.importorskip("safetensors")
    numpy_half = pytest.importorskip("safetensors.numpy")
    values = {name: value for name, value in arrays().items() if name != "tiny"}
    (path,) = write_tensors(tmp_path, due(values))
    read = numpy_half.load_file(path)
    assert read.keys() == values.keys()
    for name, value in values.items():
        assert read[name].dtype == value.dtype
        np.testing.assert_array_equal(read[name], value)
    write_tensors(tmp_path, due(arrays()))
    with library.safe_open(path, "np") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert opened.get_slice("tiny").get_dtype() == "BF16"
        assert opened.get_slice("tiny").get_shape() == [3, 1]


def test_we_read_what_the_safetensors_library_writes(tmp_path):
    numpy_half = pytest.importorskip("safetensors.numpy")
    values = arrays()
    numpy_half.save_file(values, tmp_path / WEIGHTS, metadata={"format": "pt"})
    assert_same(open_tensors(tmp_path), values)


def test_an_unaligned_file_is_read_all_the_same(tmp_path):
    value = np.arange(6, dtype=np.float32)
    header = json.dumps({"x": entry("F32", [6], 0, 24)}).encode()
    header += b" " * (3 - len(header) % 8 + 8)
    path = raw_file(tmp_path / "x.safetensors", header, value.tobytes())
    assert_same(open_tensors(path), {"x": value})
    assert not open_tensors(path).read("x").flags.aligned


def test_folders_without_weights(tmp_path):
    def message():
        with pytest.raises(InputError) as caught:
            open_tensors(tmp_path)
        return str(caught.value)

    assert "there is: nothing" in message()
    (tmp_path / "config.json").write_text("{}")
    assert "there is: config.json" in message()
    (tmp_path / "flax_model.msgpack").write_bytes(b"")
    assert "flax_model.msgpack cannot be read" in message()
    assert "model.save_pretrained(NEW)" in message()
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "pytorch_model.bin is a pickle" in message()
    assert "model.save_pretrained(NEW)" in message()
    (tmp_path / "pytorch_model.bin").unlink()
    (tmp_path / "flax_model.msgpack").unlink()
    (tmp_path / "other.safetensors").write_bytes(b"")
    assert "if other.safetensors is the model's, rename it to model.safetensors" in message()
    for n in range(20):
        (tmp_path / f"a{n:02}").write_text("")
    assert "a09 and 12 more" in message()


def test_paths_that_cannot_be_opened(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    for path, words in {
        tmp_path / "none": "does not exist",
        tmp_path / "pytorch_model.bin": "is not a .safetensors file; .*unpickling",
    }.items():
        with pytest.raises(InputError, match=words):
            open_tensors(path)


def test_every_truncation_is_seen(tmp_path):
    (path,) = write_tensors(tmp_path, due(arrays()))
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for size in range(len(whole)):
        if size < 20 or size % 17 == 0 or abs(size - header) < 3 or size == len(whole) - 1:
            path.write_bytes(whole[:size])
            with pytest.raises(InputError, match=f"is truncated: it has {size:,} bytes") as caught:
                open_tensors(tmp_path)
            expected = 8 if size < 8 else header if size < header else len(whole)
            assert f"of at least {expected:,}" in str(caught.value)
            assert str(path) in str(caught.value)


A, B = entry("F32", [2], 0, 8), entry("F32", [2], 8, 16)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"[" * 100_000, "cannot be read"),
        (b"{not json", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b'{"n": ' + b"1" * 5000 + b"}", "cannot be read"),
        ([], "not a table"),
        ({"a": 3, "b": B}, "lacks dtype, shape or offsets of 'a'"),
        ({"a": {"dtype": "F32"}, "b": B}, "lacks dtype"),
        ({"a": A | {"dtype": "F33"}, "b": B}, "'a' has dtype 'F33'; known: F64, F32"),
        ({"a": A | {"dtype": [1]}, "b": B}, "has dtype"),
        ({"a": A | {"shape": [-2]}, "b": B}, "not whole numbers"),
        ({"a": A | {"shape": [2.0]}, "b": B}, "not whole numbers"),
        ({"a": A | {"shape": [True, 2]}, "b": B}, "not whole numbers"),
        ({"a": A | {"shape": 2}, "b": B}, "not whole numbers"),
        ({"a": A | {"data_offsets": [0]}, "b": B}, "not whole numbers"),
        ({"a": A | {"data_offsets": [8, 0]}, "b": B}, "takes 8 bytes, but lies at 8 to 0"),
        ({"a": A | {"shape": [3]}, "b": B}, "takes 12 bytes, but lies at 0 to 8"),
        ({"a": A | {"shape": [1] * 33 + [2]}, "b": B}, "beyond all bounds"),
        ({"a": A | {"shape": [2**60, 0], "data_offsets": [0, 0]}, "b": B}, "beyond all bounds"),
        ({"a": A, "b": entry("F32", [2], 4, 12)}, "'b' overlaps"),
        ({"a": A, "b": A}, "'b' overlaps"),
        ({"a": A, "b": entry("F32", [1], 12, 16)}, "'b' follows a gap"),
        ({"b": B}, "'b' follows a gap"),
        ({"a": A}, "8 bytes at its end belong to no tensor"),
        ({"a": A, "b": entry("F32", [2**50], 8, 8 + 2**52)}, "is truncated"),
        (
            b'{"a": %s, "b": %s, "a": %s}' % tuple(json.dumps(each).encode() for each in (A, B, A)),
            "'a' stands in it twice",
        ),
    ],
)
def test_damaged_headers(tmp_path, header, words):
    path = raw_file(tmp_path / WEIGHTS, header, bytes(16))
    with pytest.raises(InputError, match=words) as caught:
        open_tensors(tmp_path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


def test_a_length_is_not_believed(tmp_path):
    path = tmp_path / WEIGHTS
    path.write_bytes((2**63).to_bytes(8, "little") + bytes(100))
    with pytest.raises(InputError, match="a header of 9,223,372,036,854,775,808 bytes"):
        open_tensors(tmp_path)
    path.write_bytes((99_999_999).to_bytes(8, "little") + bytes(100))
    with pytest.raises(InputError, match=r"truncated: it has 108 bytes of at least 100,000,007"):
        open_tensors(tmp_path)


def test_a_pointer_of_git_lfs(tmp_path):
    (tmp_path / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(InputError, match="git lfs pull"):
        open_tensors(tmp_path)


def test_garbage_never_crashes(tmp_path):
    rng = random.Random(0)
    (path,) = write_tensors(tmp_path, due(arrays()))
    whole = path.read_bytes()
    refused = 0
    for number in range(600):
        content = bytearray(whole)
        if number % 3 == 0:
            content = bytearray(rng.randbytes(rng.randrange(200)))
            if number % 2:
                content[:8] = max(0, len(content) - 8).to_bytes(8, "little")
        else:
            for _ in range(rng.randrange(1, 4)):
                content[rng.randrange(8, 600)] = rng.randrange(32, 127)
        path.write_bytes(content)
        try:
            source = open_tensors(tmp_path)
        except InputError:
            refused += 1
            continue
        for name, tensor in source.tensors().items():
            assert source.read(name).nbytes == math.prod(tensor.shape) * tensor.dtype.itemsize
    assert refused > 400


def test_we_refuse_what_the_safetensors_library_refuses(tmp_path):
    library = pytest.importorskip("safetensors")
    rng = random.Random(1)
    (path,) = write_tensors(tmp_path, due(arrays()))
    whole = path.read_bytes()
    agreed = 0
    for _ in range(300):
        content = bytearray(whole)
        content[rng.randrange(600)] = rng.choice(b'0123456789{}[],:" ')
        path.write_bytes(content)
        try:
            with library.safe_open(path, "np"):
                continue
        except library.SafetensorError:
            with pytest.raises(InputError):
                open_tensors(tmp_path)
            agreed += 1
    assert agreed > 100


@pytest.fixture
def split(tmp_path):
    values = {f"layer.{n}": np.full((10,), n, np.float32) for n in range(6)}
    write_tensors(tmp_path, due(values), max_file_bytes=80)
    return tmp_path


def change_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def test_an_index_of_files_that_are_missing(split):
    os.remove(split / "model-00002-of-00003.safetensors")
    with pytest.raises(InputError, match=r"names model-00002-of-00003.safetensors, which .*lacks"):
        open_tensors(split)


def test_an_index_of_tensors_that_are_missing(split):
    change_index(split, lambda places: places.update(more="model-00001-of-00003.safetensors"))
    with pytest.raises(InputError, match=r"'more' in model-00001-of-00003.safetensors, and there"):
        open_tensors(split)


def test_an_index_that_has_the_wrong_file(split):
    wrong = {"layer.0": "model-00003-of-00003.safetensors"}
    change_index(split, lambda places: places.update(wrong))
    with pytest.raises(InputError, match=r"'layer.0' in model-00003-of-00003.safetensors, and"):
        open_tensors(split)


def test_the_same_tensor_in_two_files(split):
    one = (split / "model-00001-of-00003.safetensors").read_bytes()
    (split / "model-00002-of-00003.safetensors").write_bytes(one)
    with pytest.raises(InputError, match=r"'layer.0' is both in model-00001-.* in model-00002-"):
        open_tensors(split)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"weight_map": 3}',
        b'{"weight_map": {"x": 3}}',
        b'{"weight_map": {"x": "../secret.safetensors"}}',
        b'{"weight_map": {"x": "/secret.safetensors"}}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_index(split, content):
    (split / INDEX).write_bytes(content)
    with pytest.raises(InputError, match=r"index\.json is damaged"):
        open_tensors(split)
