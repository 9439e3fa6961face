import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from t5lite.errors import InputError
from t5lite.interop import placing
from t5lite.interop.huggingface.files import open_tensors, write_tensors
from t5lite.interop.misfit import folded
from t5lite.interop.tensors import (
    Part,
    Tensor,
    check_tensors,
    read_params,
    tensors_from,
    transposed,
)
from t5lite.training.restore import named

LAYERS, EMBED, HEADS, KV, MLP, VOCAB = 6, 8, 4, 2, 16, 12


def third(number, heads=HEADS, kv=KV):
    """One of query, key, value in a fused [embed, 3 * embed] matrix, or [3 * embed] bias."""

    def view(fused):
        width = heads * kv
        part = fused[..., number * width : (number + 1) * width]
        return part.reshape(*part.shape[:-1], heads, kv)

    return view


def family(layers=LAYERS):
    """A decoder like GPT-2's: a fused projection with bias, a tied embedding, stacked layers."""
    names = ("query", "key", "value")
    tensors = [
        Tensor("wte.weight", (VOCAB, EMBED), (Part("embed"),), aliases=("lm_head.weight",)),
        Tensor("ln_f.weight", (EMBED,), (Part("norm/scale"),)),
        Tensor("temperature", (), (Part("norm/temperature"),)),
    ]
    for n in range(layers):
        tensors += [
            Tensor(
                f"h.{n}.c_attn.weight",
                (EMBED, 3 * HEADS * KV),
                tuple(Part(f"layers/{name}/kernel", n, third(i)) for i, name in enumerate(names)),
            ),
            Tensor(
                f"h.{n}.c_attn.bias",
                (3 * HEADS * KV,),
                tuple(Part(f"layers/{name}/bias", n, third(i)) for i, name in enumerate(names)),
            ),
            Tensor(f"h.{n}.mlp.weight", (MLP, EMBED), (Part("layers/mlp", n, transposed),)),
            Tensor(f"h.{n}.gain", (), (Part("layers/gain", n),)),
            Tensor(f"h.{n}.mask", (3, 3), ()),
        ]
    return tensors


SHAPES = {
    "embed": (VOCAB, EMBED),
    "norm": {"scale": (EMBED,), "temperature": ()},
    "layers": {
        **{
            name: {"kernel": (LAYERS, EMBED, HEADS, KV), "bias": (LAYERS, HEADS, KV)}
            for name in ("query", "key", "value")
        },
        "mlp": (LAYERS, EMBED, MLP),
        "gain": (LAYERS,),
    },
}
SPECS = {
    "embed": (("fsdp", "tensor"),),  # does not divide: replaced below
    "norm": {"scale": (), "temperature": ()},
    "layers": {
        "query": {"kernel": ("fsdp", None, "tensor"), "bias": ("fsdp", "tensor")},
        "key": {"kernel": (None, "fsdp", "tensor"), "bias": (None, "tensor")},
        "value": {"kernel": (None, ("fsdp", "tensor")), "bias": ()},
        "mlp": ("fsdp", None, "tensor"),
        "gain": ("fsdp",),
    },
} | {"embed": ("tensor", "fsdp")}


def is_shape(node):
    return isinstance(node, tuple)


def like(dtype=np.float32, shardings=None):
    if shardings is None:
        return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, dtype), SHAPES, is_leaf=is_shape)
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding),
        SHAPES,
        shardings,
        is_leaf=is_shape,
    )


def sharded():
    mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"))
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, PartitionSpec(*spec)), SPECS, is_leaf=is_shape
    )


def random_params(dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: rng.standard_normal(shape).astype(dtype), SHAPES, is_leaf=is_shape
    )


class Memory:
    """A source in memory that counts what is read."""

    def __init__(self, values):
        self.values, self.reads = values, []

    def tensors(self):
        return {n: jax.ShapeDtypeStruct(v.shape, v.dtype) for n, v in self.values.items()}

    def read(self, name):
        self.reads.append(name)
        return self.values[name]


def foreign(params=None, tensors=None, **options):
    params = random_params() if params is None else params
    return {n: make() for n, _, make in tensors_from(params, tensors or family(), **options)}


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert a.tobytes() == b.tobytes()


def read(values, wanted=None, tensors=None, **options):
    wanted = like() if wanted is None else wanted
    options.setdefault("checkpoint", "the file")
    return read_params(wanted, Memory(values), tensors or family(), **options)


def message(values, **options):
    with pytest.raises(InputError) as caught:
        read(values, **options)
    return str(caught.value)


def test_the_layout_is_what_the_views_say():
    params = random_params()
    values = foreign(params)
    assert set(values) == {tensor.name for tensor in family() if tensor.parts}
    layers = params["layers"]
    fused = values["h.3.c_attn.weight"]
    np.testing.assert_array_equal(fused[:, :8], layers["query"]["kernel"][3].reshape(8, 8))
    np.testing.assert_array_equal(fused[:, 8:16], layers["key"]["kernel"][3].reshape(8, 8))
    np.testing.assert_array_equal(
        values["h.2.c_attn.bias"][16:], layers["value"]["bias"][2].ravel()
    )
    np.testing.assert_array_equal(values["h.5.mlp.weight"], layers["mlp"][5].T)
    assert values["h.4.gain"] == layers["gain"][4]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16], ids=str)
@pytest.mark.parametrize("limit", [10**9, 500])
@pytest.mark.parametrize("devices", [False, True])
def test_round_trip_through_files(tmp_path, dtype, limit, devices):
    params = random_params(dtype)
    write_tensors(tmp_path, tensors_from(params, family()), max_file_bytes=limit)
    wanted = like(dtype, sharded() if devices else None)
    back = read_params(wanted, open_tensors(tmp_path), family(), checkpoint="here")
    assert_equal(back, params)
    kind = jax.Array if devices else np.ndarray
    assert all(isinstance(leaf, kind) for leaf in jax.tree.leaves(back))
    for leaf, want in zip(jax.tree.leaves(back), jax.tree.leaves(wanted), strict=True):
        assert not devices or leaf.sharding == want.sharding
    again = tmp_path / "again"
    write_tensors(again, tensors_from(back, family()), max_file_bytes=limit)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert {path.name: path.read_bytes() for path in again.iterdir()} == first


def test_one_device_and_copies_on_all():
    params = random_params()
    mesh = jax.make_mesh((8,), ("data",))
    copies = NamedSharding(mesh, PartitionSpec())
    one = jax.sharding.SingleDeviceSharding(jax.devices()[5])
    for sharding in (copies, one):
        placed = jax.tree.map(lambda _, at=sharding: at, SHAPES, is_leaf=is_shape)
        back = read(foreign(params), like(shardings=placed))
        assert_equal(back, params)
        assert_equal(foreign(back), foreign(params))
        assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(back))


def test_donated_parameters_do_not_change_under_others():
    # Devices may share the buffer that was filled.
    mesh = jax.make_mesh((8,), ("data",))
    at = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), SHAPES, is_leaf=is_shape)
    params = random_params()
    back = read(foreign(params), like(shardings=at))
    add_one = jax.jit(lambda x: x + 1, donate_argnums=0)
    for leaf, value in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True):
        first, *others = (shard.data for shard in leaf.addressable_shards)
        np.testing.assert_array_equal(add_one(first), value + np.float32(1))
        assert first.is_deleted()
        for other in others:
            np.testing.assert_array_equal(other, value)


def test_devices_of_the_host_take_the_buffers_as_they_are():
    for shape in ((1024, 64), (3, 5)):
        buffer = placing._aligned(tuple((0, size) for size in shape), np.float32)
        buffer[...] = 1
        array = jax.device_put(buffer, jax.devices()[3])
        assert array.unsafe_buffer_pointer() == buffer.ctypes.data


def test_values_are_cast_as_they_are_copied():
    params = random_params(np.float64)
    for source in (np.float64, np.float32, ml_dtypes.bfloat16):
        saved = jax.tree.map(lambda x, dtype=source: x.astype(dtype), params)
        for wanted in (np.float32, ml_dtypes.bfloat16, np.float16):
            back = read(foreign(saved), like(wanted, sharded()))
            assert_equal(back, jax.tree.map(lambda x, dtype=wanted: x.astype(dtype), saved))
    nan = jax.tree.map(lambda x: np.full(x.shape, np.nan, np.float32), params)
    with pytest.raises(InputError, match=r"96 of 96 .* NaN"):  # and no warning
        read(foreign(nan), like(ml_dtypes.bfloat16))


def test_written_dtypes():
    params = random_params(ml_dtypes.bfloat16) | {"embed": random_params()["embed"]}
    params["layers"]["query"]["bias"] = params["layers"]["query"]["bias"].astype(np.float32)
    values = foreign(params, dtypes={"wte.weight": np.float16})
    assert values["wte.weight"].dtype == np.float16
    assert values["ln_f.weight"].dtype == ml_dtypes.bfloat16
    assert values["h.0.c_attn.bias"].dtype == np.float32  # one of its parts is
    announced = {name: shape for name, shape, _ in tensors_from(params, family())}
    assert announced["h.0.c_attn.bias"].dtype == np.float32
    assert announced["wte.weight"].shape == (VOCAB, EMBED)


def test_a_tensor_is_read_once_whatever_the_number_of_shards():
    source = Memory({f"{n}": np.full((4,), n, np.float32) for n in range(LAYERS)})
    tensors = [Tensor(f"{n}", (4,), (Part("x", n),)) for n in range(LAYERS)]
    mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"))
    at = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    leaf = jax.ShapeDtypeStruct((LAYERS, 4), np.float32, sharding=at)
    back = read_params({"x": leaf}, source, tensors, checkpoint="")
    assert source.reads == [f"{n}" for n in range(LAYERS)]
    np.testing.assert_array_equal(back["x"], [[n] * 4 for n in range(LAYERS)])


def test_layers_that_only_other_processes_hold_are_not_read(monkeypatch):
    leaf = jax.ShapeDtypeStruct((LAYERS, 4), np.float32)
    monkeypatch.setattr(placing, "regions", lambda leaf: {((3, 5), (1, 4)): []})
    reads, counts = [], []

    def layer(n):
        reads.append(n)
        return np.arange(4) + 10 * n

    pieces = [placing.Piece(n, lambda n=n: layer(n)) for n in range(LAYERS)]
    part = placing.fill(leaf, pieces, counts.append)
    assert reads == [3, 4]
    np.testing.assert_array_equal(part, [[31, 32, 33], [41, 42, 43]])
    assert counts == [12, 12]


def test_progress_ends_at_all_bytes():
    for wanted in (like(), like(shardings=sharded())):
        seen = []
        read(foreign(), wanted, progress=lambda *counts, seen=seen: seen.append(counts))
        total = sum(leaf.size * 4 for leaf in jax.tree.leaves(wanted))
        assert seen[-1] == (total, total)
        assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_an_alias_is_the_tensor():
    values = foreign()
    values["lm_head.weight"] = values.pop("wte.weight")
    assert_equal(read(values), random_params())
    values["wte.weight"] = values["lm_head.weight"].copy()
    assert_equal(read(values), random_params())
    values["lm_head.weight"] = values["lm_head.weight"].astype(np.float64)
    assert_equal(read(values), random_params())
    values["lm_head.weight"] = values["wte.weight"] + np.float32(1)
    assert "the file ties wte.weight to lm_head.weight, but" in message(values)
    del values["lm_head.weight"], values["wte.weight"]
    assert "missing (1): wte.weight" in message(values)


def test_tensors_without_parts_may_be_there():
    values = foreign()
    values["h.0.mask"] = np.ones((3, 3), np.uint8)
    assert_equal(read(values), random_params())
    values["h.0.mask"] = np.ones((3, 4), np.uint8)
    assert "h.0.mask is [3, 4], wanted [3, 3]" in message(values)


def test_ignored_names_match_whole():
    values = foreign() | {"h.0.rotary.inv_freq": np.zeros(2, np.float32)}
    ignored = (r"h\.\d+\.rotary\.inv_freq",)
    assert_equal(read(values, ignored=ignored), random_params())
    assert "unexpected (1): h.0.rotary.inv_freq" in message(values)
    assert "unexpected (1)" in message(values, ignored=(r"h\.\d+\.rotary",))


def test_all_that_is_wrong_is_listed():
    values = foreign()
    del values["h.1.gain"], values["ln_f.weight"]
    values["strange"] = np.zeros(3, np.float32)
    values["h.0.mlp.weight"] = np.zeros((3, 3), np.float32)
    values["h.2.gain"] = np.zeros((), np.int8)
    source = Memory(values)
    with pytest.raises(InputError) as caught:
        read_params(like(), source, family(), checkpoint="model X")
    text = str(caught.value)
    assert text.startswith("the tensors of model X are not those of the model\n")
    assert "missing (2): ln_f.weight, h.1.gain" in text
    assert "unexpected (1): strange" in text
    assert "of another shape (1): h.0.mlp.weight is [3, 3], wanted [16, 8]" in text
    assert "of another type (1): h.2.gain is int8, wanted float32" in text
    assert "quantized" in text
    assert source.reads == []


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], []),
        (["a.w", "b.2.w"], ["a.w", "b.2.w"]),
        ([f"h.{i}.{w}" for i in (0, 1, 2, 7) for w in "qk"], ["h.{0-2,7}.q", "h.{0-2,7}.k"]),
        (
            [f"h.{i}.e.{j}.w is [2]" for i in range(3) for j in range(4)],
            ["h.{0-2}.e.{0-3}.w is [2]"],
        ),
        (["h.0.e.0.w", "h.0.e.1.w", "h.1.e.1.w"], ["h.0.e.0.w", "h.{0-1}.e.1.w"]),
    ],
)
def test_names_of_layers_are_folded(lines, expected):
    assert folded(lines) == expected


def test_a_long_list_is_whole():
    text = message({"wte.weight": np.zeros((VOCAB, EMBED), np.float32)})
    count = len(foreign()) - 1
    assert f"missing ({count}): " in text
    assert "more" not in text
    assert len(text) < 1000


def test_nearest_names():
    values = foreign()
    values["ln_f.weigth"] = values.pop("ln_f.weight")
    assert "missing (1): ln_f.weight (nearest: ln_f.weigth)" in message(values)


def renamed(change):
    return {change(name): value for name, value in foreign().items()}


def with_shape(names, shape):
    values = foreign()
    for name in values:
        if re.search(names, name):
            values[name] = np.zeros(shape(values[name].shape), np.float32)
    return values


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        (lambda: renamed(lambda name: f"transformer.{name}"), "begin with 'transformer.', the wan"),
        (lambda: renamed(lambda name: name.removeprefix("h.")), "begin with 'h.', the file's do"),
        (lambda: renamed(lambda name: name.replace(".", "_")[::-1]), "not one name is as wanted"),
        (
            lambda: {k: v for k, v in foreign().items() if not k.startswith(("h.4", "h.5"))},
            "h has 4 layers in the file and 6 in the model",
        ),
        (
            lambda: foreign() | {"h.6.gain": np.zeros((), np.float32)},
            "h has 7 layers in the file and 6 in the model",
        ),
        (lambda: with_shape("mlp", lambda shape: shape[::-1]), "transposed"),
    ],
)
def test_likely_causes(values, cause):
    lines = message(values()).splitlines()
    assert len([line for line in lines if line.startswith("likely cause: ")]) == 1
    assert cause in lines[1]


def test_a_missing_output_layer_is_named():
    wanted = {"head": jax.ShapeDtypeStruct((10, 4), np.float32)}
    text = message({}, wanted=wanted, tensors=[Tensor("lm_head.weight", (10, 4), (Part("head"),))])
    assert "likely cause: the file has no output layer (lm_head.weight)" in text
    assert "tie_word_embeddings" in text


def test_what_does_not_divide_over_the_devices():
    shardings = sharded()
    shardings["norm"]["scale"] = NamedSharding(shardings["embed"].mesh, PartitionSpec("tensor"))
    assert_equal(read(foreign(), like(shardings=shardings)), random_params())
    shardings["layers"]["gain"] = shardings["norm"]["scale"]  # 6 over 4
    source = Memory(foreign())
    with pytest.raises(InputError, match=r"layers/gain \[6\] does not divide over the devices"):
        read_params(like(shardings=shardings), source, family(), checkpoint="")
    assert source.reads == []


def test_partial_tensors_are_written_with_zeros():
    params = {"positions": np.ones((4, 2), np.float32)}
    part = Part("positions", view=lambda table: table[2:])
    (tensor,) = [Tensor("positions", (6, 2), (part,), partial=True)]
    values = foreign(params, [tensor])
    np.testing.assert_array_equal(values["positions"], [[0, 0]] * 2 + [[1, 1]] * 4)
    wanted = {"positions": jax.ShapeDtypeStruct((4, 2), np.float32)}
    assert_equal(read(values, wanted, [tensor]), params)
    with pytest.raises(RuntimeError, match="positions have 8 of 12 entries"):
        tensors_from(params, [Tensor("positions", (6, 2), (part,))])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors[1:], "embed has no source"),
        (lambda tensors: tensors[:-5], r"layers/gain is made of layers \[0, 1, 2, 3, 4\]"),
        (lambda tensors: [*tensors, tensors[0]], r"embed is made of layers \[-1, -1\]"),
        (
            lambda tensors: [*tensors, Tensor("x", (2,), (Part("y"),))],
            "y, which is not a parameter",
        ),
        (
            lambda tensors: [Tensor("x", (EMBED, VOCAB), (Part("embed"),)), *tensors[1:]],
            r"embed is not a view \(12, 8\) of x, but \(8, 12\)",
        ),
        (
            lambda tensors: [
                Tensor("x", (VOCAB, EMBED), (Part("embed", view=np.copy),)),
                *tensors[1:],
            ],
            "embed is not a view",
        ),
        (
            lambda tensors: [
                Tensor("x", (VOCAB, 2 * EMBED), (Part("embed", view=lambda x: x[:, :EMBED]),)),
                *tensors[1:],
            ],
            "the parts of x have 96 of 192 entries",
        ),
    ],
)
def test_our_own_mistakes_are_no_input_errors(change, words):
    tensors = change(family())
    with pytest.raises(RuntimeError, match=words):
        check_tensors(like(), Memory(foreign()), tensors, checkpoint="the file")
    with pytest.raises(RuntimeError, match=words):
        tensors_from(random_params(), tensors)


def test_some_of_the_parameters_are_read_alone():
    params = random_params()
    names = ("embed", "layers/gain")
    wanted = {name: leaf for name, leaf in named(like()).items() if name in names}
    for name, array in read(foreign(params), wanted).items():
        assert np.array_equal(array, named(params)[name])


def test_parameters_of_other_processes_are_refused(monkeypatch):
    array = jnp.zeros((4,), jnp.float32)
    monkeypatch.setattr(type(array), "is_fully_addressable", property(lambda self: False))
    with pytest.raises(InputError, match="x is sharded over several processes"):
        tensors_from({"x": array}, [Tensor("x", (4,), (Part("x"),))])


def test_writing_is_lazy():
    made = []

    def view(array):
        made.append(array.shape)
        return array

    tensors = [Tensor(f"{n}", (3,), (Part("x", n, view),)) for n in range(4)]
    pieces = list(tensors_from({"x": np.zeros((4, 3), np.float32)}, tensors))
    made.clear()
    pieces[2][2]()
    assert made == [(3,)]


def test_layers_of_experts_are_two_leading_axes():
    tensors = [
        Tensor(f"{n}.{expert}", (4, 2), (Part("x", (n, expert), transposed),))
        for n in range(2)
        for expert in range(4)
    ]
    params = {"x": np.arange(64, dtype=np.float32).reshape(2, 4, 2, 4)}
    mesh = jax.make_mesh((2, 4), ("fsdp", "expert"))
    for spec in (("fsdp", "expert"), (None, "expert", "fsdp"), ()):
        at = NamedSharding(mesh, PartitionSpec(*spec))
        leaf = jax.ShapeDtypeStruct((2, 4, 2, 4), np.float32, sharding=at)
        values = foreign(params, tensors)
        np.testing.assert_array_equal(values["1.2"], params["x"][1, 2].T)
        back = read(values, {"x": leaf}, tensors)
        assert_equal(back, params)
        assert_equal(foreign(back, tensors), values)
    with pytest.raises(RuntimeError, match="x is made of layers"):
        tensors_from(params, tensors[:-1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_takes_no_memory_beside_the_parameters(tmp_path, dtype):
    script = Path(__file__).parents[2] / "benchmarks" / "load_memory.py"
    options = ["--megabytes", "400", "--devices", "8", "--dtype", dtype]
    options += ["--folder", str(tmp_path), "--json", str(tmp_path / "memory.json")]
    subprocess.run([sys.executable, str(script), *options], check=True)
    found = json.loads((tmp_path / "memory.json").read_text())
    beyond = found["load"]["peak"] - found["load"]["before"] - found["parameters"]
    assert -10e6 < beyond < 40e6  # the largest parameter is twice this; any copy would show
    assert found["write"]["peak"] - found["write"]["before"] < 160e6  # the largest tensor: 123 MB
    assert found["same"] == (dtype == "float32")
