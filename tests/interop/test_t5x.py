"""T5X checkpoints: whatever layout, the same parameters; what is written is read back."""

import dataclasses
import functools
import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import t5x_checkpoints as made
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5lite.errors import InputError
from t5lite.interop import t5x
from t5lite.layers import (
    AlibiSpec,
    AttentionSpec,
    LMHeadSpec,
    MlpSpec,
    RelativeBiasSpec,
    RMSNormSpec,
)
from t5lite.models import PRESETS, Model, ModelSpec, StackSpec, TransformerBlockSpec, override
from t5lite.optimizers import Adafactor, AdafactorState
from t5lite.training import CheckpointError
from t5lite.training.restore import named

MODELS = {
    "v1_1": {},
    "v1_0": {"gated": False, "tied": True},
    "untied_relu": {"gated": False},
    "bias_per_layer": {"per_layer": True},
    "decoder": {"decoder_only": True, "tied": True},
}
FORMS = {
    "t5": (False, True),
    "scalable_t5": (True, False),
    "scanned_joined": (True, True),
    "unscanned_cut": (False, False),
}


class Imported(NamedTuple):
    spec: Any
    params: Any
    step: int


def load(folder, *, spec=None, like=None, progress=None):
    """Reads all parameters, to NumPy in float32 or as `like` says."""
    opened = t5x.open_model(folder, spec=spec)
    like = Model(opened.spec).shapes() if like is None else like
    opened.shapes(Model(opened.spec))
    params = opened.read(named(like), progress=progress)
    leaves = [params[name] for name in named(like)]
    params = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return Imported(opened.spec, params, opened.step)


def in_form(arrays, form):
    scanned, joined = FORMS[form]
    if scanned:
        return made.scan(arrays, joined=joined)
    if joined:
        return arrays
    return {
        name: made.cut_heads(name, value) if "attention." in name else value
        for name, value in arrays.items()
    }


def same(tree, wanted):
    flat = named(tree)
    assert flat.keys() == wanted.keys()
    for path, value in wanted.items():
        np.testing.assert_array_equal(flat[path], value, err_msg=path, strict=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_is_read_from_every_form(tmp_path, model, form):
    arrays = made.draw(layers=2, **MODELS[model])
    made.released(tmp_path, in_form(arrays, form), step=12)
    loaded = load(tmp_path)
    same(loaded.params, made.expected(arrays))
    assert loaded.step == 12


def test_states_are_no_part_of_the_model(tmp_path):
    arrays = made.draw(layers=1)
    states, _ = made.adafactor(arrays, steps(arrays, number=1), scanned=False)
    made.released(tmp_path, arrays, states=states, step=1)
    found = t5x.open_model(tmp_path)
    assert found.left_out() == []
    assert found.step == 1


@pytest.mark.parametrize("model", ["v1_1", "v1_0", "bias_per_layer", "decoder"])
def test_logits_are_those_of_t5x(tmp_path, model):
    arrays = made.draw(**MODELS[model])
    rng = np.random.default_rng(1)
    inputs, targets = (rng.integers(1, made.VOCAB, (2, n)).astype(np.int32) for n in (9, 7))
    wanted = made.logits(arrays, inputs, targets)
    made.released(tmp_path / "plain", arrays)
    made.released(tmp_path / "scanned", made.scan(arrays))
    spec, params, _ = load(tmp_path / "plain")

    @jax.jit
    def logits(params):
        batch = {"encoder_input_tokens": inputs, "decoder_input_tokens": targets}
        batch = {key: jnp.asarray(value) for key, value in batch.items()}
        return Model(spec).logits(params, Model(spec).hidden(params, batch)[0])

    ours = logits(params)
    np.testing.assert_allclose(ours, wanted, atol=2e-5)
    scanned = load(tmp_path / "scanned")
    assert scanned.spec == spec
    np.testing.assert_array_equal(logits(scanned.params), ours)


@pytest.mark.parametrize("version", [2, 3])
def test_bfloat16_is_read_as_it_is_and_as_float32(tmp_path, version):
    arrays = {name: value.astype(ml_dtypes.bfloat16) for name, value in made.draw().items()}
    made.released(tmp_path, arrays, version=version, inline=["decoder.decoder_norm.scale"])
    wide = {path: value.astype(np.float32) for path, value in made.expected(arrays).items()}
    spec, params, _ = load(tmp_path)
    same(params, wide)
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), Model(spec).shapes()
    )
    same(load(tmp_path, like=like).params, made.expected(arrays))


@pytest.mark.parametrize(
    "options",
    [
        {"version": None},
        {"driver": "file", "prefix": "/home/someone/t5x/checkpoint_7.tmp-1623/"},
        {"driver": "gcs", "prefix": "models/checkpoint_7/"},
        {"inline": ["encoder.encoder_norm.scale", "token_embedder.embedding"]},
    ],
    ids=["unversioned", "absolute", "bucket", "inline"],
)
def test_where_and_how_it_was_written_does_not_matter(tmp_path, options):
    arrays = made.draw()
    root = made.released(tmp_path / "first", arrays, **options)
    moved = tmp_path / "elsewhere"
    shutil.move(root, moved)
    loaded = load(moved)
    same(loaded.params, made.expected(arrays))
    assert loaded.step == 7


def test_the_last_of_several_is_opened(tmp_path):
    made.released(tmp_path, made.draw(seed=0), step=9)
    made.released(tmp_path, made.draw(seed=1), step=10)
    (tmp_path / "checkpoint_11.tmp-1623").mkdir()
    loaded = load(tmp_path)
    assert loaded.step == 10
    same(loaded.params, made.expected(made.draw(seed=1)))
    assert load(tmp_path / "checkpoint_9").step == 9


@pytest.mark.parametrize("how", ["old", "folders", "database", "zarr3"])
def test_orbax_output_is_read(tmp_path, how):
    arrays = made.draw()
    if how == "old":
        made.old_orbax(tmp_path, arrays)
    else:
        tree = made.nested({f"target.{name}": value for name, value in arrays.items()})
        tree["state"] = {"step": np.int32(7), "empty": {}}
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=how != "folders", use_zarr3=how == "zarr3")
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(tmp_path / "checkpoint_7" / "state", args=ocp.args.PyTreeSave(tree))
    loaded = load(tmp_path)
    same(loaded.params, made.expected(arrays))
    assert loaded.step == 7


def test_parameters_arrive_sharded(tmp_path):
    arrays = made.draw()
    made.released(tmp_path, made.scan(arrays))
    spec = t5x.open_model(tmp_path).spec
    mesh = Mesh(np.array(jax.devices()[:2]), ("fsdp",))

    def halved(leaf):
        axis = max(range(len(leaf.shape)), key=lambda axis: leaf.shape[axis] % 2 == 0)
        names = [None] * len(leaf.shape)
        names[axis] = "fsdp"
        sharding = NamedSharding(mesh, PartitionSpec(*names))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    like, told = jax.tree.map(halved, Model(spec).shapes()), []
    params = load(tmp_path, like=like, progress=lambda *done: told.append(done)).params
    same(params, made.expected(arrays))
    assert all(leaf.sharding == want.sharding for leaf, want in pairs(params, like))
    assert told[-1][0] == told[-1][1] > told[0][0]


def pairs(one, other):
    return zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)


@pytest.mark.parametrize("name", ["t5_small", "t5_11b", "t5_1_1_small", "t5_1_1_xxl"])
@pytest.mark.parametrize("form", FORMS)
def test_presets_are_known_by_their_names_and_shapes(name, form):
    scanned, joined = FORMS[form]
    tensors = t5x.tensors(PRESETS[name], scanned=scanned, joined=joined)
    shapes = {t.name: jax.ShapeDtypeStruct(t.shape, np.float32) for t in tensors}
    assert t5x.infer_spec(shapes) == PRESETS[name]
    assert t5x.infer_form(shapes) == t5x.Form(scanned, joined)


def test_a_deeper_decoder_and_other_sizes_are_inferred():
    spec = override(
        "t5_1_1_small",
        {"encoder.num_layers": 12, "decoder.num_layers": 4, "vocab": 384, "embed": 1472},
    )
    shapes = {t.name: jax.ShapeDtypeStruct(t.shape, np.float32) for t in t5x.tensors(spec)}
    assert t5x.infer_spec(shapes) == spec


@pytest.mark.parametrize(
    ("model", "form"),
    [(model, form) for model in MODELS for form in FORMS if model == "v1_1" or "t5" in form],
)
def test_what_is_saved_is_t5xs_and_is_loaded_bit_by_bit(tmp_path, model, form):
    arrays, (scanned, joined) = made.draw(layers=2, **MODELS[model]), FORMS[form]
    made.released(tmp_path / "theirs", arrays)
    spec, params, _ = load(tmp_path / "theirs")
    root = t5x.save(tmp_path / "ours", spec, params, step=3, scanned=scanned, joined=joined)
    assert root == tmp_path / "ours" / "checkpoint_3"
    content, headers = made.describe(root)
    assert content["version"] == 3
    assert content["optimizer"]["state"]["step"].tolist() == 3
    described = flat_specs(content["optimizer"]["target"])
    wanted = in_form(arrays, form)
    assert described.keys() == wanted.keys()
    for name, value in wanted.items():
        one, header = described[name], headers[f"target.{name}"]
        assert one["driver"] == "zarr"
        assert one["dtype"] == "float32"
        assert one["kvstore"] == {"driver": "file", "path": f"target.{name}"}
        assert one["metadata"]["shape"] == header["shape"] == list(value.shape)
        assert one["metadata"]["chunks"] == header["chunks"]
        assert one["metadata"]["compressor"]["id"] == header["compressor"]["id"] == "gzip"
        np.testing.assert_array_equal(made.read_as_t5x(root, one), value, strict=True)
    again = load(root)
    assert (again.spec, again.step) == (spec, 3)
    same(again.params, named(params))
    assert [path.name for path in (tmp_path / "ours").iterdir()] == ["checkpoint_3"]


def flat_specs(tree, prefix=""):
    if tree.keys() >= {"driver", "kvstore", "metadata"}:
        return {prefix[1:]: tree}
    return {
        name: spec
        for key, value in tree.items()
        for name, spec in flat_specs(value, f"{prefix}.{key}").items()
    }


def test_bfloat16_and_zeros_are_saved(tmp_path):
    arrays = {name: value.astype(ml_dtypes.bfloat16) for name, value in made.draw().items()}
    arrays["decoder.decoder_norm.scale"][:] = 0
    made.released(tmp_path / "theirs", arrays, inline=["decoder.decoder_norm.scale"])
    spec = t5x.infer_spec(t5x.open_checkpoint(tmp_path / "theirs").tensors())
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), Model(spec).shapes()
    )
    params = load(tmp_path / "theirs", like=like).params
    root = t5x.save(tmp_path / "ours", spec, params)
    source = t5x.open_checkpoint(root)
    for name, value in arrays.items():
        np.testing.assert_array_equal(source.read(f"target.{name}"), value, strict=True)


def test_layers_of_a_pattern_of_two_are_saved_and_loaded_in_order(tmp_path):
    arrays = made.draw()
    made.released(tmp_path / "theirs", arrays)
    spec, params, _ = load(tmp_path / "theirs")

    def doubled(stack):
        return stack.replace(blocks=stack.blocks * 2)

    twice = spec.replace(encoder=doubled(spec.encoder), decoder=doubled(spec.decoder))
    for scanned in (False, True):
        made.released(tmp_path / str(scanned), made.scan(arrays) if scanned else arrays)
        own = load(tmp_path / str(scanned), spec=twice).params
        kernel = named(params)["encoder/layers/block_0/attention/query/kernel"]
        flat = named(own)
        for layer, (path, entry) in enumerate(
            [("layers/block_0", 0), ("layers/block_1", 0), ("remainder/block_0", ...)]
        ):
            got = flat[f"encoder/{path}/attention/query/kernel"][entry]
            np.testing.assert_array_equal(got, kernel[layer])
        root = t5x.save(tmp_path / f"saved_{scanned}", twice, own, scanned=scanned)
        same(load(root).params, named(params))


def test_chunks_are_equal_and_small(monkeypatch, tmp_path):
    monkeypatch.setattr("t5lite.interop.t5x.saving._MAX_CHUNK_BYTES", 400)
    arrays = made.draw()
    made.released(tmp_path / "theirs", arrays)
    spec, params, _ = load(tmp_path / "theirs")
    root = t5x.save(tmp_path / "ours", spec, params, scanned=True)
    _, headers = made.describe(root)
    for header in headers.values():
        assert np.prod(header["chunks"]) <= 100
        assert all(s % c == 0 for s, c in zip(header["shape"], header["chunks"], strict=True))
    same(load(root).params, named(params))


# --- Adafactor


def steps(arrays, *, number, seed=5):
    rng = np.random.default_rng(seed)
    return [
        {n: rng.standard_normal(v.shape).astype(np.float32) for n, v in arrays.items()}
        for _ in range(number)
    ]


def tree_of(arrays, like):
    flat = made.expected(arrays)
    return jax.tree.unflatten(
        jax.tree.structure(like), [jnp.asarray(flat[path]) for path in named(like)]
    )


@functools.cache
def update_fn(optimizer, spec):
    return jax.jit(optimizer(Model(spec).axes(), Model(spec).shapes()).update)


def run(optimizer, spec, params, state, gradients):
    """Returns parameters and state after our updates."""
    for gradient in gradients:
        changes, state = update_fn(optimizer, spec)(gradient, state, params)
        params = jax.tree.map(jnp.add, params, changes)
    return params, state


class Run(NamedTuple):
    """Two updates of ours, and what is needed for a third."""

    arrays: dict
    gradients: list
    spec: ModelSpec
    optimizer: Adafactor
    params: dict
    state: AdafactorState

    def next(self, state):
        last = tree_of(self.gradients[2], self.params)
        state = jax.tree.map(jnp.asarray, state)
        return run(self.optimizer, self.spec, self.params, state, [last])


@functools.cache
def two_updates(kv, beta1) -> Run:
    arrays = made.draw(kv=kv, layers=2)
    gradients = steps(arrays, number=3)
    named_shapes = {f"target.{name}": value for name, value in arrays.items()}
    spec = t5x.infer_spec(named_shapes)
    optimizer = Adafactor(0.1, beta1=beta1, min_dim_size_to_factor=12)
    model = Model(spec)
    params = tree_of(arrays, model.shapes())
    state = optimizer(model.axes(), params).init(params)
    trees = [tree_of(gradient, params) for gradient in gradients[:2]]
    params, state = run(optimizer, spec, params, state, trees)
    return Run(arrays, gradients, spec, optimizer, params, state)


# Heads together narrower than embed, as wide, wider.
KINDS = pytest.mark.parametrize(
    ("kv", "beta1"),
    [
        pytest.param(3, None, marks=pytest.mark.slow),
        pytest.param(4, None, marks=pytest.mark.slow),
        (6, 0.9),
    ],
)


@KINDS
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.slow
def test_adafactor_goes_on_as_in_t5x(tmp_path, form, kv, beta1):
    ours = two_updates(kv, beta1)
    states, _ = made.adafactor(
        in_form(ours.arrays, form),
        [in_form(gradient, form) for gradient in ours.gradients[:2]],
        scanned=FORMS[form][0],
        beta1=beta1,
    )
    made.released(tmp_path, in_form(ours.arrays, form), step=2, states=states)
    imported = t5x.load_adafactor(tmp_path, ours.spec, ours.optimizer)
    assert jax.tree.structure(imported) == jax.tree.structure(ours.state)
    assert int(imported.count) == int(ours.state.count) == 2
    close(imported, ours.state, rtol=2e-5, atol=1e-7)
    close(ours.next(imported), ours.next(ours.state), rtol=1e-5, atol=1e-6)


def close(tree, wanted, **tolerances):
    flat = named(tree)
    for path, value in named(wanted).items():
        np.testing.assert_allclose(flat[path], value, err_msg=path, **tolerances)


@KINDS
@pytest.mark.parametrize("form", FORMS)
def test_saved_moments_are_t5xs_and_are_loaded_bit_by_bit(tmp_path, form, kv, beta1):
    (scanned, joined), ours = FORMS[form], two_updates(kv, beta1)
    root = t5x.save(
        tmp_path,
        ours.spec,
        ours.params,
        step=2,
        scanned=scanned,
        joined=joined,
        adafactor=ours.state,
    )
    imported = t5x.load_adafactor(root, ours.spec, ours.optimizer)
    same(imported, {path: np.asarray(value) for path, value in named(ours.state).items()})
    for one, other in pairs(ours.next(imported), ours.next(ours.state)):
        np.testing.assert_array_equal(one, other)

    wanted, _ = made.adafactor(
        in_form(ours.arrays, form),
        [in_form(gradient, form) for gradient in ours.gradients[:2]],
        scanned=scanned,
        beta1=beta1,
    )
    source = t5x.open_checkpoint(root)
    there = {name for name in source.tensors() if name.startswith("state.param_states.")}
    assert there == {f"state.param_states.{name}" for name in wanted}
    for name, value in wanted.items():
        read = source.read(f"state.param_states.{name}")
        assert read.shape == value.shape, name
        np.testing.assert_allclose(read, value, rtol=2e-5, atol=1e-7, err_msg=name)
    content, _ = made.describe(root)
    moments = content["optimizer"]["state"]["param_states"]["decoder"]["decoder_norm"]["scale"]
    assert moments["v"]["driver"] == "zarr"
    assert moments["v_row"].tolist() == [0.0]


def test_momentum_keeps_its_dtype(tmp_path):
    ours = two_updates(3, None)
    optimizer = dataclasses.replace(ours.optimizer, beta1=0.5, mu_dtype="bfloat16")
    m = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), ours.params)
    state = ours.state._replace(m=m)
    root = t5x.save(tmp_path, ours.spec, ours.params, step=2, adafactor=state)
    same(t5x.load_adafactor(root, ours.spec, optimizer).m, named(jax.tree.map(np.asarray, m)))


def test_whole_moments_become_factored_ones_and_factored_ones_do_not_become_whole(tmp_path):
    ours = two_updates(3, None)
    gradients = [made.scan(gradient) for gradient in ours.gradients[:2]]
    arrays = made.scan(ours.arrays)
    states, _ = made.adafactor(arrays, gradients, scanned=True, min_size=20)
    # Scanned kernels are factored though 16 < 20, the embedding [50, 16] is not.
    assert states["token_embedder.embedding.v"].shape == (50, 16)
    assert states["encoder.encoder.mlp.wo.kernel.v"].shape == (1,)
    made.released(tmp_path, arrays, step=2, states=states)
    coarse = dataclasses.replace(ours.optimizer, min_dim_size_to_factor=20)
    with pytest.raises(InputError, match=r"kernel\.v, .*min_dim_size_to_factor = 1 "):
        t5x.load_adafactor(tmp_path, ours.spec, coarse)
    close(t5x.load_adafactor(tmp_path, ours.spec, ours.optimizer), ours.state, rtol=2e-5, atol=1e-7)


def test_what_t5x_factors_regardless_of_size_is_saved_factored(tmp_path):
    ours = two_updates(3, None)
    # As if one kind of matrix were too small to be factored.
    path = "encoder/layers/block_0/mlp/down/kernel"
    full = jnp.asarray(made.expected(ours.gradients[0])[path] ** 2)
    state = ours.state._replace(
        v_row=within(ours.state.v_row, path, None),
        v_col=within(ours.state.v_col, path, None),
        v=within(ours.state.v, path, full),
    )
    root = t5x.save(tmp_path, ours.spec, ours.params, step=2, scanned=True, adafactor=state)
    source, name = t5x.open_checkpoint(root), "state.param_states.encoder.encoder.mlp.wo.kernel"
    stacked = np.stack(full, axis=1)  # [mlp, layers, embed]
    np.testing.assert_allclose(source.read(f"{name}.v_row"), stacked.mean(0), rtol=1e-6)
    np.testing.assert_allclose(source.read(f"{name}.v_col"), stacked.mean(2), rtol=1e-6)
    assert source.read(f"{name}.v").shape == (1,)


def within(tree, path, value):
    """Returns nested dicts with the leaf at a path replaced."""
    first, _, rest = path.partition("/")
    return {**tree, first: within(tree[first], rest, value) if rest else value}


def test_adafactor_says_what_it_lacks(tmp_path):
    arrays = made.draw(layers=1)
    states, _ = made.adafactor(arrays, steps(arrays, number=1), scanned=False)
    made.released(tmp_path / "with", arrays, step=1, states=states)
    made.released(tmp_path / "without", arrays, step=1)
    spec = load(tmp_path / "with").spec
    optimizer = Adafactor(0.1, min_dim_size_to_factor=12)
    with pytest.raises(InputError, match="no state of Adafactor"):
        t5x.load_adafactor(tmp_path / "without", spec, optimizer)
    momentum = dataclasses.replace(optimizer, beta1=0.9)
    with pytest.raises(InputError, match=r"\.m, .*beta1 = None"):
        t5x.load_adafactor(tmp_path / "with", spec, momentum)
    del states["token_embedder.embedding.v_col"]
    made.released(tmp_path / "less", arrays, step=1, states=states)
    with pytest.raises(InputError, match=r"token_embedder\.embedding\.v_col"):
        t5x.load_adafactor(tmp_path / "less", spec, optimizer)
    fresh = optimizer(Model(spec).axes(), Model(spec).shapes()).init(load(tmp_path / "with").params)
    params = load(tmp_path / "with").params
    with pytest.raises(InputError, match=r"step = 5, .* 0 updates"):
        t5x.save(tmp_path / "new", spec, params, step=5, adafactor=fresh)
    assert not (tmp_path / "new").exists()


# --- What goes wrong


def test_what_is_no_checkpoint_is_told(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        t5x.open_checkpoint(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{}")
    assert t5x.find_checkpoint(tmp_path) is None
    with pytest.raises(InputError, match=r"a file `checkpoint`.*here is config\.json"):
        t5x.open_checkpoint(tmp_path)
    with pytest.raises(InputError, match="it is a file"):
        t5x.open_checkpoint(tmp_path / "config.json")
    (tmp_path / "run" / "checkpoint_5.tmp-1623").mkdir(parents=True)
    with pytest.raises(InputError, match=r"checkpoint_5\.tmp-1623 was never finished"):
        t5x.open_checkpoint(tmp_path / "run")
    (tmp_path / "run" / "checkpoint_6").mkdir()
    with pytest.raises(InputError, match="here is nothing"):
        t5x.open_checkpoint(tmp_path / "run")
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-1000"\n')
    with pytest.raises(InputError, match="TensorFlow checkpoint"):
        t5x.open_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x01", "half"])
def test_a_damaged_list_of_arrays_is_told(tmp_path, content):
    root = made.released(tmp_path, made.draw(layers=1))
    file = root / "checkpoint"
    file.write_bytes(file.read_bytes()[:2000] if content == "half" else content)
    with pytest.raises(CheckpointError, match="damaged: its file `checkpoint`"):
        t5x.open_checkpoint(root)


def test_a_checkpoint_without_parameters_is_told(tmp_path):
    handler = ocp.PyTreeCheckpointHandler()
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(
            tmp_path / "state", args=ocp.args.PyTreeSave({"params": {"a": np.ones(2)}})
        )
    with pytest.raises(InputError, match="lacks `target`, and has params"):
        t5x.open_checkpoint(tmp_path)


def test_missing_folders_and_files_are_told(tmp_path):
    arrays = made.draw(layers=1)
    states, _ = made.adafactor(arrays, steps(arrays, number=1), scanned=False)
    root = made.released(tmp_path, arrays, states=states)
    for folder in root.glob("state.param_states.*"):  # which many leave behind
        shutil.rmtree(folder)
    load(root)
    one = root / "target.decoder.logits_dense.kernel"
    (one / "0.1").unlink()
    with pytest.raises(CheckpointError, match=r"logits_dense\.kernel/? has 3 of 4 files"):
        load(root)
    shutil.rmtree(one)
    with pytest.raises(CheckpointError, match=r"lacks folders: target\.decoder\.logits_dense"):
        load(root)


def test_a_damaged_array_is_told(tmp_path):
    root = made.released(tmp_path, made.draw(layers=1))
    (root / "target.token_embedder.embedding" / "0.0").write_bytes(b"no gzip")
    with pytest.raises(CheckpointError, match=r"damaged: target\.token_embedder\.embedding"):
        load(root)
    (root / "target.token_embedder.embedding" / ".zarray").write_text("{}")
    with pytest.raises(CheckpointError, match=r"damaged: target\.token_embedder\.embedding"):
        load(root)


def test_other_parameters_are_told(tmp_path):
    arrays = made.draw(layers=2)
    spec = load(made.released(tmp_path / "whole", arrays)).spec
    more = {**arrays, "encoder.layers_0.adapter.kernel": np.ones((2, 2), np.float32)}
    made.released(tmp_path / "more", more)
    with pytest.raises(InputError, match=r"encoder\.layers_0\.adapter\.kernel"):
        load(tmp_path / "more")
    less = {name: value for name, value in arrays.items() if "layers_1.mlp.wo" not in name}
    made.released(tmp_path / "less", less)
    with pytest.raises(InputError, match=r"layers_1\.mlp\.wo\.kernel"):
        load(tmp_path / "less")
    with pytest.raises(InputError, match=r"mlp\.wi_0\.kernel"):
        load(tmp_path / "whole", spec=override(spec, {"*.blocks.*.mlp.hidden": 32}))
    norm, table = arrays["encoder.encoder_norm.scale"], arrays["token_embedder.embedding"]
    made.released(tmp_path / "encoder", {"encoder.encoder_norm.scale": norm})
    with pytest.raises(InputError, match=r"lacks target\.decoder"):
        load(tmp_path / "encoder")
    made.released(
        tmp_path / "other", {"decoder.blocks.kernel": norm, "token_embedder.embedding": table}
    )
    with pytest.raises(
        InputError, match=r"neither layers_0 nor decoder, but target\.decoder\.blocks\.kernel"
    ):
        load(tmp_path / "other")


T5 = override("t5_1_1_nano", {"*.num_layers": 1})


def refused() -> dict[str, ModelSpec]:
    attention = AttentionSpec(4, 32, logits_scale=1.0)
    block = TransformerBlockSpec(attention, MlpSpec(8))
    bias = RelativeBiasSpec()
    encoder = StackSpec(1, (block,), causal=False, position_bias=bias)
    wide = T5.decoder.blocks[0].replace(mlp=MlpSpec(640, "gelu_tanh", True))
    return {
        "encoder alone": ModelSpec("t5", 10, 8, encoder=encoder, heads=()),
        "position_bias = None": PRESETS["llama_nano"],
        "position_bias = Alibi": T5.replace(encoder=T5.encoder.replace(position_bias=AlibiSpec())),
        "decoder.blocks differ": T5.replace(
            decoder=T5.decoder.replace(num_layers=2, blocks=(T5.decoder.blocks[0], wide))
        ),
        "num_kv_heads": override(T5, {"encoder.blocks.*.attention.num_kv_heads": 2}),
        "logits_scale": override(T5, {"*.blocks.*.attention.logits_scale": 0.5}),
        "epsilon": T5.replace(encoder=T5.encoder.replace(final_norm=RMSNormSpec(1e-5))),
        "embedding_scale": override(T5, {"encoder.embedding_scale": 2.0}),
        "use_bias": T5.replace(heads=(LMHeadSpec(use_bias=True),)),
        "heads.0.logits_scale": T5.replace(heads=(LMHeadSpec(tied=True, logits_scale=1.0),)),
    }


@pytest.mark.parametrize("reason", refused())
def test_what_t5x_has_no_model_for_is_refused(tmp_path, reason):
    with pytest.raises(InputError, match=reason):
        t5x.save(tmp_path / "new", refused()[reason], {})
    assert not (tmp_path / "new").exists()


def test_what_t5x_does_not_write_down_is_not_refused():
    spec = override(
        T5,
        {
            "*.blocks.*.mlp.activation": "silu",
            "*.dropout_rate": 0.3,
            "*.position_bias.max_distance": 256,
        },
    )
    assert t5x.tensors(spec)


def test_nothing_is_left_of_a_failed_save(tmp_path, monkeypatch):
    made.released(tmp_path / "theirs", made.draw(layers=1))
    spec, params, _ = load(tmp_path / "theirs")
    t5x.save(tmp_path / "ours", spec, params, step=1)
    with pytest.raises(InputError, match="checkpoint_1 exists"):
        t5x.save(tmp_path / "ours", spec, params, step=1)
    with pytest.raises(InputError, match="step is -1"):
        t5x.save(tmp_path / "ours", spec, params, step=-1)

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("t5lite.interop.t5x.saving.serialization.msgpack_serialize", full)
    with pytest.raises(CheckpointError, match="was not written: OSError: No space left"):
        t5x.save(tmp_path / "ours", spec, params, step=2)
    assert [path.name for path in pathlib.Path(tmp_path / "ours").iterdir()] == ["checkpoint_1"]
