"""Mixtures of experts against a loop over tokens, and what routing must never do."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from t5lite.errors import InputError
from t5lite.layers import MlpSpec
from t5lite.layers.moe import MoeSpec, assign, choose, load_balancing
from t5lite.parallel import Layout, make_mesh, shardings, with_layout

BATCH, LENGTH, EMBED, HIDDEN, EXPERTS = 4, 8, 6, 10, 4
X = np.random.default_rng(0).standard_normal((BATCH, LENGTH, EMBED)).astype(np.float32)
EXPERT = MlpSpec(HIDDEN, "gelu_tanh", gated=True)
TOP_1 = MoeSpec(EXPERT, EXPERTS, capacity=2)
TOP_2 = TOP_1.replace(top_k=2, normalize_weights=True)


def make(spec, *, dtype="float32", dropout_rate=0.0):
    return spec.make(EMBED, dtype=jnp.dtype(dtype), dropout_rate=dropout_rate)


@functools.cache
def parameters():
    """The same for every spec here, with a router that has opinions."""
    drawn = nn.unbox(make(TOP_1).init(jax.random.key(1), X))["params"]
    return drawn | {"router": {"kernel": drawn["router"]["kernel"] * 8}}


@functools.partial(jax.jit, static_argnames=("spec", "dtype"))
def run(spec, params, x, *, dtype="float32"):
    """Returns the output and the losses."""
    y, variables = make(spec, dtype=dtype).apply({"params": params}, x, mutable=["losses"])
    return y, variables["losses"]


def ranking(params, row):
    """Each token's probabilities, and its experts from the best to the worst."""
    logits = np.float64(row) @ np.float64(params["router"]["kernel"])
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return probabilities, np.argsort(-probabilities, axis=-1)


def all_experts(params, x):
    """What each expert makes of all tokens, `[experts, batch, length, embed]`."""
    expert = EXPERT.make(EMBED, dtype=jnp.dtype("float32"), dropout_rate=0.0)
    return jax.vmap(lambda params: expert.apply({"params": params}, x))(params["experts"])


def by_hand(spec, params, x):
    """Token by token; also returns, for each choice, whether it was dropped."""
    every = np.asarray(all_experts(params, x))
    y, dropped = np.zeros(x.shape), np.zeros((len(x), spec.top_k, x.shape[1]), bool)
    for row in range(len(x)):
        taken = [0] * EXPERTS
        probabilities, ranked = ranking(params, x[row])
        for rank in range(spec.top_k):
            for token in range(x.shape[1]):
                best = ranked[token, : spec.top_k]
                weight = probabilities[token, best[rank]]
                if spec.normalize_weights:
                    weight /= probabilities[token, best].sum()
                if taken[best[rank]] == spec.slots(x.shape[1]):
                    dropped[row, rank, token] = True
                    continue
                taken[best[rank]] += 1
                y[row, token] += weight * every[best[rank]][row, token]
    return y, dropped


@pytest.mark.parametrize(
    "spec",
    [
        TOP_1,
        TOP_1.replace(capacity=None),
        TOP_1.replace(capacity=None, capacity_factor=0.5),
        TOP_2,
        TOP_2.replace(normalize_weights=False),
        TOP_2.replace(capacity=3),
    ],
)
def test_it_is_the_loop_over_tokens(spec):
    y, dropped = by_hand(spec, parameters(), X)
    assert dropped.any() == (spec.slots(LENGTH) < LENGTH)
    actual, _ = run(spec, parameters(), X)
    np.testing.assert_allclose(actual, y, rtol=1e-4, atol=1e-5)
    nothing = dropped.all(axis=1)
    assert nothing.any() or spec.top_k == 2 or spec.slots(LENGTH) == LENGTH
    assert np.all(np.asarray(actual)[nothing] == 0)
    assert np.all(np.any(np.asarray(actual)[~nothing] != 0, axis=-1))


@pytest.mark.parametrize("top_k", [1, 2, EXPERTS])
def test_without_a_capacity_it_is_a_weighted_sum_of_dense_layers(top_k):
    spec = MoeSpec(EXPERT, EXPERTS, top_k)
    every = all_experts(parameters(), X)
    probabilities, ranked = ranking(parameters(), X)
    weights = np.where(np.argsort(ranked, axis=-1) < top_k, probabilities, 0)
    y, _ = run(spec, parameters(), X)
    np.testing.assert_allclose(y, np.einsum("ebld,ble->bld", every, weights), rtol=1e-4, atol=1e-5)


def test_all_first_choices_come_before_second_ones():
    # Token 0 has expert 1 second; tokens 1 and 2 have it first, and there is room for two.
    probabilities = jnp.float32([[[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.6, 0.3]]])
    chosen, weights = choose(probabilities, 2, normalize=True)
    np.testing.assert_array_equal(np.argmax(chosen[0], axis=-1), [[0, 1, 1], [1, 0, 2]])
    np.testing.assert_allclose(
        weights[0], [[2 / 3, 7 / 9, 2 / 3], [1 / 3, 2 / 9, 1 / 3]], rtol=1e-6
    )
    none = 3 * 2
    np.testing.assert_array_equal(assign(chosen, 2)[0], [0, 2, 3, none, 1, 4])
    np.testing.assert_array_equal(assign(chosen, 1)[0], [0, 1, 3, 3, 3, 2])


def test_equal_probabilities_choose_different_experts():
    chosen, weights = choose(jnp.full((1, 2, 3), 1 / 3, jnp.float32), 3, normalize=False)
    np.testing.assert_array_equal(np.argmax(chosen[0, :, 0], axis=-1), [0, 1, 2])
    np.testing.assert_allclose(weights, 1 / 3)


@pytest.mark.parametrize("spec", [TOP_1, TOP_2])
def test_gradients_reach_router_and_experts_and_are_right(spec):
    def loss(params, x):
        return jnp.sum(jnp.square(run(spec, params, x)[0]))

    gradients, of_x = jax.jit(jax.grad(loss, argnums=(0, 1)))(parameters(), X)
    flat, tree = jax.tree.flatten((gradients, of_x))
    assert all(np.any(leaf != 0) for leaf in flat)
    rng = np.random.default_rng(2)
    step = [1e-3 * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in flat]
    at = jax.tree.leaves((parameters(), X))
    up, down = (
        loss(*jax.tree.unflatten(tree, [a + s * d for a, d in zip(at, step, strict=True)]))
        for s in (1.0, -1.0)
    )
    expected = sum(float(np.sum(g * d)) for g, d in zip(flat, step, strict=True))
    assert (up - down) / 2 == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize("spec", [TOP_1, TOP_2])
def test_a_row_does_not_depend_on_other_rows(spec):
    whole, _ = run(spec, parameters(), X)
    another = X.copy()
    another[1:] = np.random.default_rng(3).standard_normal(X[1:].shape)
    np.testing.assert_array_equal(run(spec, parameters(), another)[0][0], whole[0])


def seen_by(spec, token):
    """The tokens of a row that can change one's output, by putting others in their places."""
    row, rest = X[:1], np.random.default_rng(4).standard_normal((64, EMBED)).astype(np.float32)
    before, seen = run(spec, parameters(), row)[0][0, token], set()
    for position in range(LENGTH):
        changed = np.repeat(row, len(rest), axis=0)
        changed[:, position] = rest
        after = run(spec, parameters(), changed)[0][:, token]
        if np.any(np.abs(after - before[None]) > 1e-5):
            seen.add(position)
    return seen


def test_with_one_choice_no_token_depends_on_later_ones():
    spec = TOP_1.replace(capacity=1)
    assert by_hand(spec, parameters(), X[:1])[1].any()
    dependent = [seen_by(spec, token) for token in range(LENGTH)]
    assert all(max(seen, default=0) <= token for token, seen in enumerate(dependent))
    assert any(len(seen) > 1 for seen in dependent)  # those before it can take its place

    # And by derivative, which does not see who takes whose slot.
    def row(x):
        return run(spec, parameters(), x[None])[0][0]

    jacobian = np.abs(jax.jacrev(row)(X[0])).sum(axis=(1, 3))
    assert np.all(jacobian[~np.eye(LENGTH, dtype=bool)] == 0)
    assert np.any(np.diag(jacobian) > 0)


def test_with_two_choices_a_later_token_takes_an_earlier_ones_second():
    # As documented. Without drops no token sees another.
    spec = TOP_2.replace(capacity=2)
    assert any(max(seen_by(spec, token)) > token for token in range(LENGTH))
    assert seen_by(spec.replace(capacity=None), 3) == {3}


def test_decoding_token_by_token_drops_nothing():
    whole, _ = run(TOP_1.replace(capacity=None), parameters(), X)
    for token in range(2):
        one, _ = run(TOP_1.replace(capacity=1), parameters(), X[:, token : token + 1])
        np.testing.assert_allclose(one, whole[:, token : token + 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("top_k", [1, 2])
def test_load_balancing_is_1_when_experts_are_used_evenly_and_num_experts_when_not(top_k):
    even = np.full((1, EXPERTS, EXPERTS), 0.1, np.float32)
    for token in range(EXPERTS):
        even[0, token, token], even[0, token, (token + 1) % EXPERTS] = 0.5, 0.3
    chosen, _ = choose(jnp.asarray(even), top_k, normalize=False)
    assert load_balancing(jnp.asarray(even), chosen) == pytest.approx(1)
    sure = np.zeros((2, 3, EXPERTS), np.float32)
    sure[..., 1] = 1
    chosen, _ = choose(jnp.asarray(sure), 1, normalize=False)
    assert load_balancing(jnp.asarray(sure), chosen) == pytest.approx(EXPERTS)


def test_losses_are_the_formulas_times_their_coefficients():
    spec = TOP_1.replace(balance_coefficient=0.3, router_z_coefficient=0.2)
    _, losses = run(spec, parameters(), X)
    assert {name: (leaf.shape, leaf.dtype.name) for name, leaf in losses.items()} == {
        "load_balancing": ((), "float32"),
        "router_z": ((), "float32"),
    }
    probabilities, ranked = ranking(parameters(), X)
    used = np.bincount(ranked[..., 0].ravel(), minlength=EXPERTS) / (BATCH * LENGTH)
    balance = EXPERTS * np.sum(used * probabilities.mean(axis=(0, 1)))
    assert losses["load_balancing"] == pytest.approx(0.3 * balance, rel=1e-5)
    logits = np.float64(X) @ np.float64(parameters()["router"]["kernel"])
    log_z = np.log(np.exp(logits).sum(axis=-1))
    assert losses["router_z"] == pytest.approx(0.2 * np.mean(log_z**2), rel=1e-5)
    # A router without opinions sends all to one expert, but spreads its probability.
    blank = parameters() | {"router": {"kernel": np.zeros((EMBED, EXPERTS), np.float32)}}
    assert run(spec, blank, X)[1]["load_balancing"] == pytest.approx(0.3)


def test_losses_of_a_layer_that_is_called_twice_add_up():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = make(TOP_1)
            return layer(layer(x))

    first, one = run(TOP_1, parameters(), X)
    _, two = run(TOP_1, parameters(), first)
    _, sown = Twice().apply({"params": {"Moe_0": parameters()}}, X, mutable=["losses"])
    for name, total in sown["losses"]["Moe_0"].items():
        assert total == pytest.approx(float(one[name] + two[name]), rel=1e-5)


def test_losses_train_the_router_towards_balance():
    def loss(kernel):
        return run(TOP_1, parameters() | {"router": {"kernel": kernel}}, X)[1]["load_balancing"]

    kernel = parameters()["router"]["kernel"]
    gradient = jax.grad(loss)(kernel)
    assert loss(kernel - 0.1 * gradient / jnp.linalg.norm(gradient)) < loss(kernel)


def test_losses_are_sown_into_mutable_collections_only():
    assert make(TOP_1).apply({"params": parameters()}, X).shape == X.shape


def test_parameters_have_axis_names_and_experts_differ():
    variables = make(TOP_1, dtype="bfloat16").init(jax.random.key(0), X)["params"]
    into, out = ("experts", "embed", "mlp"), ("experts", "mlp", "embed")
    assert {k: v["kernel"].names for k, v in variables["experts"].items()} == {
        "up": into,
        "gate": into,
        "down": out,
    }
    assert variables["router"]["kernel"].names == ("embed", "experts")
    params = nn.unbox(variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    up = np.asarray(params["experts"]["up"]["kernel"])
    assert up.shape == (EXPERTS, EMBED, HIDDEN)
    assert not np.any(up[0] == up[1])
    assert np.std(up) == pytest.approx(EMBED**-0.5, rel=0.2)  # the fan-in of one expert


def test_bfloat16_experts_and_a_float32_router():
    _, losses = run(TOP_1, parameters(), X)
    rounded = X.astype(jnp.bfloat16)
    y, own = run(TOP_1, parameters(), rounded, dtype="bfloat16")
    assert y.dtype == jnp.bfloat16
    exact, of_rounded = run(TOP_1, parameters(), rounded.astype(np.float32))
    assert own == of_rounded
    assert own["router_z"] != losses["router_z"]
    np.testing.assert_allclose(np.float32(y), exact, rtol=0.05, atol=0.05)
    np.testing.assert_array_equal(np.any(y != 0, axis=-1), np.any(exact != 0, axis=-1))


def test_jitter_is_for_training():
    spec = TOP_1.replace(capacity=None, router_jitter_rate=0.5)
    module, variables = make(spec), {"params": parameters()}
    still = module.apply(variables, X)
    one, same, another = (
        module.apply(variables, X, rngs={"dropout": jax.random.key(key)}) for key in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert np.any(one != still)
    assert np.any(one != another)


def test_dropout_is_inside_the_experts_and_differs_between_them():
    # Two equal experts, who cannot see what the router sees: signs that send half a row to each.
    module = make(MoeSpec(MlpSpec(64), 2), dropout_rate=0.5)
    x = np.ones((1, LENGTH, EMBED), np.float32)
    x[:, LENGTH // 2 :, 0] = -1
    up, down = (np.full((2, *shape), 0.1, np.float32) for shape in ((EMBED, 64), (64, EMBED)))
    up[:, 0] = 0
    router = np.zeros((EMBED, 2), np.float32)
    router[0] = 1, -1
    kernels = {"router": router, "experts": {"up": up, "down": down}}
    variables = {"params": jax.tree.map(lambda leaf: {"kernel": leaf}, kernels)}
    first, second = np.split(np.asarray(module.apply(variables, x)[0]), 2)
    np.testing.assert_array_equal(first, second)
    dropped = module.apply(variables, x, rngs={"dropout": jax.random.key(0)})
    first, second = np.split(np.asarray(dropped[0]), 2)
    assert np.any(first != second)


class Layer(nn.Module):
    spec: MoeSpec

    @nn.compact
    def __call__(self, x, _):
        return x + make(self.spec)(x), None


class Layers(nn.Module):
    spec: MoeSpec
    num_layers: int

    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            nn.remat(Layer, prevent_cse=False),
            variable_axes={"params": 0, "losses": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return layers(self.spec, name="layers")(x, None)[0]


def test_a_scan_over_layers_is_one_after_the_other():
    module = Layers(TOP_2, 3)
    variables = module.init(jax.random.key(0), X)
    params = nn.unbox(variables)["params"]
    up = variables["params"]["layers"]["Moe_0"]["experts"]["up"]["kernel"]
    assert up.names == ("layers", "experts", "embed", "mlp")
    y, sown = module.apply({"params": params}, X, mutable=["losses"])
    expected, losses = X, []
    for layer in range(3):
        own = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["layers"]["Moe_0"])
        update, actual = run(TOP_2, own, expected)
        expected, losses = expected + update, [*losses, actual]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    # T5X takes the mean over the layers that have experts.
    mean = jax.tree.map(lambda *item: sum(item) / 3, *losses)
    actual = jax.tree.map(jnp.mean, sown["losses"]["layers"]["Moe_0"])
    assert actual == {name: pytest.approx(float(value), rel=1e-5) for name, value in mean.items()}

    def loss(params):
        y, sown = module.apply({"params": params}, X, mutable=["losses"])
        return jnp.sum(y) + sum(jnp.mean(leaf) for leaf in jax.tree.leaves(sown["losses"]))

    gradients = jax.jit(jax.grad(loss))(params)
    assert all(
        np.any(leaf[layer] != 0) for leaf in jax.tree.leaves(gradients) for layer in range(3)
    )


SHARED = (("mlp", "tensor"), ("heads", "tensor"), ("length", "seq"), ("embed", None))
WITH_EXPERTS = (
    ("experts", "expert"),
    ("batch", ("data", "fsdp", "expert")),
    ("batch", ("data", "fsdp")),
    *SHARED,
)


@pytest.mark.parametrize(
    ("mesh", "activations"),
    [
        ({"data": 2, "expert": 2, "tensor": 2}, WITH_EXPERTS),
        ({"expert": 4, "fsdp": 2}, WITH_EXPERTS),
        ({"data": 4, "seq": 2}, (("batch", ("data", "fsdp", "expert")), *SHARED)),
    ],
)
@pytest.mark.parametrize("spec", [TOP_1, TOP_2], ids=["top_1", "top_2"])
@pytest.mark.light("top_1-mesh0-activations0", "top_2-mesh1-activations1")
def test_one_device_equals_eight(spec, mesh, activations):
    layout = Layout(mesh=mesh, activations=activations)
    devices = make_mesh(layout)
    boxed = jax.eval_shape(make(spec).init, jax.random.key(0), X[:1])
    axes = nn.get_partition_spec(boxed)["params"]
    x = np.concatenate([X, X[::-1]])

    def loss(params, x):
        y, sown = make(spec).apply({"params": params}, x, mutable=["losses"])
        return jnp.sum(jnp.square(y)) + sum(jax.tree.leaves(sown["losses"])), y

    step = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    expected = jax.jit(step)(parameters(), x)
    placed = jax.device_put(parameters(), shardings(axes, layout.parameters, devices))
    rows = shardings(PartitionSpec("batch", "length"), layout.activations, devices)
    sharded = with_layout(step, layout, devices)
    actual = sharded(placed, jax.device_put(x, rows))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), actual, expected
    )
    if "expert" in mesh:  # tokens travel to the experts and back, and so do their gradients
        text = sharded.lower(placed, jax.device_put(x, rows)).compile().as_text()
        travels = [line for line in text.splitlines() if " all-to-all(" in line]
        assert len(travels) == 4
        assert not any("take_along_axis" in line for line in travels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 5}, "MoeSpec.top_k = 5: must be at most num_experts"),
        ({"top_k": 0}, "top_k = 0: must be at least 1"),
        ({"num_experts": 0}, "num_experts = 0: must be at least 1"),
        ({"capacity": 0}, "capacity = 0: must be at least 1"),
        ({"capacity_factor": 1.0}, "capacity = 2: must be None with a capacity_factor"),
        ({"capacity": None, "capacity_factor": 0.0}, "capacity_factor = 0.0: must be above 0"),
        ({"normalize_weights": True}, "normalize_weights = True: must be False with top_k = 1"),
        ({"balance_coefficient": -1.0}, "balance_coefficient = -1.0: must be at least 0"),
        ({"router_jitter_rate": 1.0}, r"router_jitter_rate = 1.0: must be in \[0, 1\)"),
    ],
)
def test_impossible_specs_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        TOP_1.replace(**changes)


def test_slots():
    assert MoeSpec(EXPERT, 8).slots(100) == 100
    assert MoeSpec(EXPERT, 8, capacity=64).slots(512) == 64
    assert MoeSpec(EXPERT, 8, capacity=64).slots(1) == 1
    assert MoeSpec(EXPERT, 8, capacity_factor=1.25).slots(100) == 16
    assert MoeSpec(EXPERT, 8, 2, capacity_factor=1.25).slots(100) == 32
    assert MoeSpec(EXPERT, 8, 2, capacity_factor=1.25).slots(1) == 1


def test_the_spec_is_json_and_back():
    spec = TOP_2.replace(capacity=None, capacity_factor=1.25)
    assert MoeSpec.from_json(spec.to_json()) == spec


def test_the_router_is_precise_in_both_passes():
    """An accelerator's own precision would send tokens elsewhere, and round its gradient."""

    def loss(params):
        return jnp.sum(make(TOP_1, dtype="bfloat16").apply({"params": params}, X))

    jaxpr = jax.make_jaxpr(jax.grad(lambda p: loss(p).astype(jnp.float32)))(parameters())
    products = [item for item in jaxpr.jaxpr.eqns if item.primitive.name == "dot_general"]
    # The router's alone have factors in float32: forwards, and for its kernel; `X` needs none.
    precise = [item for item in products if item.invars[0].aval.dtype == jnp.float32]
    assert len(precise) >= 2
    assert len(products) > len(precise)
    assert all(set(item.params["precision"]) == {jax.lax.Precision.HIGHEST} for item in precise)
