"""Adapters and storage of weight matrices come from outside: layers know nothing of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from saved_models import save_model
from tiny_models import random_batch, tiny
from toy_policies import ToyInt8Spec, ToyLowRankSpec
from varied_models import VARIED

import t5lite
from t5lite.data import Bytes
from t5lite.errors import InputError
from t5lite.layers import Spec
from t5lite.models import ComputeSpec, Model, forward_flops, load_spec, override, save_spec
from t5lite.parallel import PARAMETERS, Layout, make_mesh, shardings

BASE = tiny("t5_nano")  # tied logits, three scanned layers on each side
EVERYWHERE = ToyLowRankSpec(".", rank=3)
SOME = ToyLowRankSpec(r"decoder/.*/attention/(query|value)/kernel")
INT8 = ComputeSpec(storage=(ToyInt8Spec("."),))


@functools.cache
def params_of(spec, compute=ComputeSpec()):
    return jax.jit(Model(spec, compute).init)(jax.random.key(0))


@functools.partial(jax.jit, static_argnames=("spec", "compute"))
def logits(spec, params, batch, compute=ComputeSpec()):
    model = Model(spec, compute)
    return model.logits(params, model.hidden(params, batch)[0])


def is_adapter(path):
    return path[-1].key.startswith("low_rank")


def drawn(params, seed=0):
    """Adapters at random: zero initial values would hide mistakes."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        random = jnp.asarray(0.1 * rng.standard_normal(leaf.shape), jnp.float32)
        return random if is_adapter(path) else leaf

    return jax.tree_util.tree_map_with_path(draw, params)


def paths(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


@pytest.mark.light("unequal_widths_and_experts")
@pytest.mark.parametrize("name", VARIED)
def test_an_adapter_at_its_start_is_the_base_model(name):
    spec = VARIED[name]
    base, adapted = params_of(spec), params_of(spec.replace(adapters=(EVERYWHERE,)))
    own = {path for path in paths(adapted) if "low_rank" in path}
    matrices = Model(spec).matrices()
    assert own == {
        path.rsplit("/", 1)[0] + f"/{leaf}"
        for path in matrices
        for leaf in ("low_rank_a", "low_rank_b")
    }
    assert paths(adapted).keys() - own == paths(base).keys()
    batch = random_batch()
    read = jax.jit(lambda model, params: model.hidden(params, batch)[0], static_argnums=0)
    hidden = read(Model(spec.replace(adapters=(EVERYWHERE,))), adapted)
    np.testing.assert_allclose(hidden, read(Model(spec), adapted), atol=1e-6)
    changed = read(Model(spec.replace(adapters=(EVERYWHERE,))), drawn(adapted))
    assert np.max(np.abs(changed - hidden)) > 1e-3


def test_an_adapter_trains_inside_the_scan_and_moves_alone():
    spec, batch = BASE.replace(adapters=(SOME,)), random_batch()
    params = params_of(spec)
    assert {path.split("/")[-2] for path in paths(params) if "low_rank" in path} == {
        "query",
        "value",
    }
    leaf = params["decoder"]["layers"]["block_0"]["attention"]["query"]["low_rank_a"]
    assert leaf.shape == (3, 16, 2)  # a slice for each layer

    @jax.jit
    def step(params):
        def loss(params):
            logs = jax.nn.log_softmax(logits(spec, params, batch))
            targets = batch["decoder_target_tokens"][..., None]
            return -jnp.mean(jnp.take_along_axis(logs, targets, axis=-1))

        value, gradients = jax.value_and_grad(loss)(params)
        moved = jax.tree_util.tree_map_with_path(
            lambda path, leaf, slope: leaf - jnp.float32(0.5) * slope if is_adapter(path) else leaf,
            params,
            gradients,
        )
        return value, moved

    first, moved = step(params)
    for _ in range(40):
        last, moved = step(moved)
    assert float(last) < 0.9 * float(first)
    for path, leaf in paths(moved).items():
        same = np.array_equal(leaf, paths(params)[path])
        assert same != ("low_rank" in path), path
        if "low_rank" in path:  # every layer's own
            assert np.all(np.abs(leaf - paths(params)[path]).max(axis=(1, 2)) > 0)


@pytest.mark.parametrize("compute", [ComputeSpec(), INT8], ids=["float", "int8"])
def test_cached_decoding_of_an_adapted_model_is_the_full_forward_pass(compute):
    """Stacked or not, from float arrays or from encoded ones."""
    spec, batch = BASE.replace(adapters=(EVERYWHERE,)), random_batch()
    params = Model(spec, compute).store(drawn(params_of(spec)))
    whole = logits(spec, params, batch, compute)
    stacked = Model(spec, compute)
    for model, own in ((stacked, params), (stacked.unstacked, stacked.unstack(params))):
        cache = jax.jit(model.start, static_argnames="max_length")(own, batch, max_length=7)
        extend = jax.jit(model.extend)
        for step in range(3):
            tokens = batch["decoder_input_tokens"][:, step : step + 1]
            cached, cache = extend(own, tokens, cache)
            np.testing.assert_allclose(cached[:, 0], whole[:, step], atol=1e-4)


@pytest.mark.light("tied", "unequal_widths_and_experts")
@pytest.mark.parametrize("name", ["tied", *VARIED])
def test_int8_storage_is_the_model_within_its_rounding(name):
    spec, batch = BASE if name == "tied" else VARIED[name], random_batch()
    params = params_of(spec)
    stored = Model(spec, INT8).store(params)
    leaves = paths(stored)
    weights = set(Model(spec).matrices())
    assert {path.rsplit("/", 1)[0] for path in leaves if path.endswith("values")} == weights
    assert all(leaf.dtype == jnp.int8 for path, leaf in leaves.items() if path.endswith("values"))
    read = jax.jit(lambda model, params: model.hidden(params, batch)[0], static_argnums=0)
    exact, rounded = read(Model(spec), params), read(Model(spec, INT8), stored)
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 0 < error < 0.05
    if "lm" in Model(spec).heads:
        both = [
            Model(spec, compute).logits(own, exact)
            for compute, own in ((ComputeSpec(), params), (INT8, stored))
        ]
        assert np.linalg.norm(both[1] - both[0]) / np.linalg.norm(both[0]) < 0.02


def test_storage_is_drawn_as_it_is_kept_and_smaller():
    model = Model(BASE, INT8)
    drawn, shapes = params_of(BASE, INT8), model.shapes()
    assert jax.tree.structure(drawn) == jax.tree.structure(shapes)
    stored = jax.jit(model.store)(params_of(BASE))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), drawn, stored)

    def size(tree):
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))

    assert size(stored) < 0.4 * size(params_of(BASE))


@pytest.mark.parametrize("kind", ["t5lite", "huggingface", "t5x"])
def test_floats_of_a_folder_are_encoded_by_a_storage(tmp_path, kind):
    spec = override("t5_1_1_nano", {"vocab": 384})
    plain = params_of(spec)
    save_model(tmp_path / "run", spec, plain, kind=kind, vocabulary=Bytes(num_sentinels=5))
    compute = ComputeSpec(storage=(ToyInt8Spec("mlp"),))
    loaded = t5lite.load(tmp_path / "run", compute=compute, devices=jax.devices()[:1])
    expected = jax.jit(Model(spec, compute).store)(plain)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(loaded.params)} == {"float32", "int8"}


def test_a_storage_holds_for_the_paths_that_it_names():
    compute = ComputeSpec(storage=(ToyInt8Spec("token_embedding"), ToyInt8Spec("encoder/.*mlp")))
    stored = {
        path.split("/")[0]
        for path, leaf in paths(Model(BASE, compute).shapes()).items()
        if leaf.dtype == jnp.int8
    }
    assert stored == {"token_embedding", "encoder"}


def test_names_of_axes_shard_adapters_and_storage_on_eight_devices():
    spec, batch = BASE.replace(adapters=(EVERYWHERE,)), random_batch()
    model = Model(spec, INT8)
    params = model.store(drawn(params_of(spec)))
    layout = Layout({"fsdp": 2, "tensor": 2, "data": 2})
    mesh = make_mesh(layout)
    placed = jax.device_put(params, shardings(model.axes(), layout.parameters, mesh))
    query = placed["decoder"]["layers"]["block_0"]["attention"]["query"]
    assert query["low_rank_a"].sharding.spec == PartitionSpec(None, "fsdp", None)
    assert query["kernel"]["values"].sharding.spec == PartitionSpec(None, "fsdp", "tensor", None)
    alone = logits(spec, params, batch, INT8)
    np.testing.assert_allclose(logits(spec, placed, batch, INT8), alone, atol=1e-4)
    names = {name for axes in jax.tree.leaves(model.axes()) for name in axes if name}
    assert "rank" in names <= {name for name, _ in PARAMETERS}


def test_an_adapters_products_are_counted():
    lengths = {"encoder_length": 9, "decoder_length": 7}
    plain = forward_flops(BASE, **lengths)
    # Queries and values of three decoder layers: 16 wide in, 4 heads of 6 out.
    assert forward_flops(BASE.replace(adapters=(SOME,)), **lengths) == plain + (
        3 * 2 * 7 * 2 * SOME.rank * (16 + 24)
    )
    crossed = ToyLowRankSpec("cross_attention/key", rank=1)
    assert forward_flops(BASE.replace(adapters=(crossed,)), **lengths) == plain + (
        3 * 9 * 2 * (16 + 24)
    )
    tied = ToyLowRankSpec("token_embedding", rank=1)
    assert forward_flops(BASE.replace(adapters=(tied,)), **lengths) == plain + 7 * 2 * (50 + 16)
    experts = VARIED["unequal_widths_and_experts"]
    inside = ToyLowRankSpec("encoder/.*experts/up", rank=1)
    moe = next(block.mlp for block in experts.encoder.blocks if block.has_experts)
    count = sum(block.has_experts for block in experts.encoder.every_block)
    width = experts.encoder.embed or experts.embed
    assert forward_flops(experts.replace(adapters=(inside,)), **lengths) == forward_flops(
        experts, **lengths
    ) + count * moe.num_experts * moe.slots(9) * 2 * (width + moe.expert.hidden)


def test_adapters_are_saved_with_the_model(tmp_path):
    spec = BASE.replace(adapters=(SOME, ToyLowRankSpec("encoder", rank=1)))
    save_spec(tmp_path / "model.json", spec)
    assert load_spec(tmp_path / "model.json") == spec


def test_a_class_that_is_not_imported_is_named_with_its_module(tmp_path, monkeypatch):
    save_spec(tmp_path / "model.json", BASE.replace(adapters=(SOME,)))
    monkeypatch.delitem(Spec.registry, "ToyLowRankSpec")
    with pytest.raises(InputError, match=r"'ToyLowRankSpec' is defined in toy_policies: import"):
        load_spec(tmp_path / "model.json")


def test_mistakes_in_policies_are_named():
    with pytest.raises(InputError, match=r"ToyLowRankSpec.include = '\(': must be a regular"):
        ToyLowRankSpec("(")
    twice = BASE.replace(adapters=(SOME, SOME))
    with pytest.raises(InputError, match="two have a parameter 'low_rank_a' at decoder/layers"):
        Model(twice).shapes()
    with pytest.raises(InputError, match=r"ModelSpec.adapters = .*expected tuple"):
        BASE.replace(adapters=(INT8.storage[0],))
    nowhere = "matches no weight matrix; they look like decoder/layers/block_0"
    with pytest.raises(InputError, match=f"ModelSpec.adapters: .* 'quary' {nowhere}"):
        Model(BASE.replace(adapters=(SOME, ToyLowRankSpec("quary")))).shapes()
    with pytest.raises(InputError, match=f"ComputeSpec.storage: .* 'quary' {nowhere}"):
        Model(BASE, ComputeSpec(storage=(ToyInt8Spec("quary"),))).axes()
