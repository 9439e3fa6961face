"""Frozen parameters: split off, merged again, without gradients, optimizer state or change."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny_runs import FAST as COMPILER
from tiny_runs import (
    OBJECTIVE,
    OPTIMIZERS,
    SPEC,
    array_data,
    assert_close,
    assert_same,
    batches,
    first_params,
    place,
)

from t5lite.errors import InputError
from t5lite.models import Model, override
from t5lite.parallel import Layout, make_mesh
from t5lite.training import (
    ByPath,
    CheckpointError,
    Checkpoints,
    Everything,
    Tuning,
    Update,
    build,
    load_params,
    whole_params,
)
from t5lite.training.restore import named
from t5lite.training.tuning import FILE, from_json, read_tuning, write_tuning

pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"  # of Orbax, where it meets damage
)
MODEL = Model(SPEC)
HALF = ByPath(exclude=["^encoder/", "^token_embedding/"])
TOP = ByPath(exclude="embedding$", layers=(1, None))


def bound(tuning, model=MODEL):
    return tuning.bind(model.axes(), model.shapes())


def leaves(tree):
    return {name: (leaf.shape, str(leaf.dtype)) for name, leaf in named(tree).items()}


# Surgery.


@pytest.mark.parametrize(
    "tuning",
    [
        Everything(),
        HALF,
        TOP,
        ByPath(include="attention", exclude=["cross", "norm"]),
        ByPath(layers=(0, 1)),
        ByPath(layers=(-1, None)),
    ],
    ids=str,
)
def test_merge_is_the_inverse_of_split_for_arrays_shapes_and_axes(tuning):
    tuning = bound(tuning)
    params = first_params()
    assert_same(tuning.merge(*tuning.split(params)), params)
    arrays = jax.tree.map(jnp.asarray, params)
    assert_same(jax.jit(lambda tree: tuning.merge(*tuning.split(tree)))(arrays), params)
    assert tuning.merge(*tuning.split(MODEL.shapes())) == MODEL.shapes()
    assert tuning.merge(*tuning.split(MODEL.axes())) == MODEL.axes()
    for of_arrays, of_shapes, of_axes in zip(
        *map(tuning.split, (params, MODEL.shapes(), MODEL.axes())), strict=True
    ):
        assert leaves(of_arrays) == leaves(of_shapes)
        assert jax.tree.structure(of_shapes) == jax.tree.structure(of_axes)


def test_layers_inside_a_stack_are_split_by_their_numbers():
    """A pattern of two blocks after a first one, with a remainder: seven layers, numbered."""
    block = SPEC.encoder.blocks[0]
    stack = dataclasses.replace(
        SPEC.encoder, first_blocks=(block,), blocks=(block, block), num_layers=6
    )
    model = Model(SPEC.replace(encoder=stack))
    shapes = model.shapes()

    def number(path, leaf):
        """Fills a parameter with the numbers of its layers; -1 outside of layers."""
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        match = re.match(r"encoder/(first|layers|remainder)/block_(\d)/", name)
        if match is None:
            return np.full(leaf.shape, -1)
        first = {"first": 0, "layers": 1, "remainder": 5}[match[1]] + int(match[2])
        if match[1] != "layers":
            return np.full(leaf.shape, first)
        layers = np.arange(first, 5, 2).reshape(-1, *[1] * (leaf.ndim - 1))
        return np.broadcast_to(layers, leaf.shape)

    def inside(tree):
        return {int(n) for leaf in jax.tree.leaves(tree) for n in np.unique(leaf)}

    numbers = jax.tree_util.tree_map_with_path(number, shapes)
    trained, frozen = ByPath(layers=(2, 4)).bind(model.axes(), shapes).split(numbers)
    assert inside(trained["encoder"]["layers"]) == {2, 3}
    assert inside(trained["encoder"]) == {-1, 2, 3}
    assert inside(frozen["encoder"]) == {0, 1, 4, 5}
    assert_same(ByPath(layers=(2, 4)).bind(model.axes(), shapes).merge(trained, frozen), numbers)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ByPath(include="("), r"ByPath.include = '\(': not a regular expression"),
        (lambda: ByPath(layers=(1, 2, 3)), "ByPath.layers = .* pair"),
        (lambda: ByPath(layers=(1.5, None)), "ByPath.layers = .* pair"),
        (lambda: bound(ByPath(exclude="decodr")), "ByPath.exclude = 'decodr': matches no param"),
        (lambda: bound(ByPath(exclude=".")), "freezes every parameter"),
        (lambda: bound(ByPath(layers=(7, 9))), r"\(7, 9\): holds no layer .* which has .*coder \d"),
        (lambda: program_of(ByPath), "train.tuning = .*ByPath'>: must be a Tuning"),
        (
            lambda: bound(ByPath(layers=(0, 1)), Model(override(SPEC, {"*.shared_layers": True}))),
            "all layers share encoder/layers|all layers share decoder/layers",
        ),
    ],
)
def test_a_tuning_that_fits_no_model_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("tuning", [Everything(), HALF, TOP], ids=str)
def test_a_tuning_survives_json(tuning):
    assert from_json(tuning.to_json()) == tuning
    assert bound(tuning).to_json() == tuning.to_json()
    with pytest.raises(InputError, match="tuning 'ByPaths'"):
        from_json({"tuning": "ByPaths"})


# Training.


@functools.cache
def program_of(tuning, *, num_devices=8, optimizer="adamw", ema=None):
    layout = Layout(
        {"data": 2, "fsdp": -1} if num_devices > 1 else {}, compiler_options={"cpu": COMPILER}
    )
    return build(
        MODEL,
        OBJECTIVE,
        OPTIMIZERS[optimizer],
        array_data(pack=False).batch_shapes(OBJECTIVE),
        layout=layout,
        mesh=make_mesh(layout, jax.devices()[:num_devices]),
        tuning=tuning,
        update=Update(ema_decay=ema),
    )


def start(program):
    params = jax.tree.map(
        lambda leaf, like: jax.device_put(leaf, like.sharding), first_params(), program.params
    )
    return program.start_from(params, 0)


@functools.cache
def trained(tuning, *, num_devices=8, steps=3):
    program = program_of(tuning, num_devices=num_devices)
    state, losses = start(program), []
    for batch in batches(steps):
        state, metrics = program.step(state, place(program, batch))
        losses.append(float(metrics["loss"]))
    return jax.device_get(state), losses


def size(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("tuning", [HALF, TOP], ids=["half", "top"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_frozen_parameters_have_no_optimizer_state(tuning, optimizer):
    whole = program_of(Everything(), optimizer=optimizer).state
    state = program_of(tuning, optimizer=optimizer).state
    frozen = size(state.frozen)
    assert size(state.params) + frozen == size(whole.params)
    assert 0.3 < frozen / size(whole.params) < 0.7
    scalars = sum(leaf.nbytes for leaf in map(jnp.zeros_like, ())) + 8
    if optimizer == "adamw":  # two moments of every trained parameter, and a count
        assert 2 * size(state.params) <= size(state.opt_state) <= 2 * size(state.params) + scalars
    assert size(state.opt_state) < 0.8 * size(whole.opt_state)
    average = program_of(tuning, ema=0.9).state.extra["ema"]
    assert size(average) == size(state.params)


def test_frozen_parameters_have_no_gradients():
    """Counts matrix products and looks for arrays of a gradient's shape in the step's jaxpr."""

    def products(tuning):
        program = program_of(tuning, num_devices=1)
        jaxpr = program.step.trace(program.state, dict(program.batch)).jaxpr
        return str(jaxpr).count("dot_general"), str(jaxpr)

    whole, _ = products(Everything())
    half, _ = products(HALF)
    backward = products(ByPath(include="^lm_head/"))[0]
    assert backward < half < whole
    # Only the head is trained: nothing goes back into the decoder, whatever it costs forward.
    forward = str(
        jax.make_jaxpr(
            lambda params, batch: OBJECTIVE.loss(MODEL, params, batch, rngs={}, train=False)
        )(MODEL.shapes(), dict(program_of(HALF, num_devices=1).batch))
    ).count("dot_general")
    assert backward <= forward + 2


@pytest.mark.parametrize("tuning", [HALF, TOP], ids=["half", "top"])
def test_frozen_parameters_are_bit_equal_after_training_and_the_rest_moves(tuning):
    state, _ = trained(tuning)
    before, frozen = bound(tuning).split(first_params())
    assert_same(state.frozen, {"params": frozen, "references": {}})
    for name, leaf in named(state.params).items():
        assert np.any(leaf != named(before)[name]), name


@pytest.mark.parametrize("tuning", [HALF, TOP], ids=["half", "top"])
def test_the_first_step_of_trained_parameters_is_that_of_training_everything(tuning):
    """Without clipping, gradients of the trained ones do not depend on which others are frozen."""
    state, losses = trained(tuning, steps=1)
    whole, expected = trained(Everything(), steps=1)
    assert losses == pytest.approx(expected)
    assert_close(state.params, bound(tuning).split(whole.params)[0], atol=2e-6)


@pytest.mark.parametrize("tuning", [HALF, TOP], ids=["half", "top"])
def test_one_device_equals_eight(tuning):
    (one, losses), (eight, expected) = trained(tuning, num_devices=1), trained(tuning)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert_close(one.params, eight.params, atol=1e-5)


def test_frozen_parameters_are_sharded_like_trained_ones():
    program = program_of(TOP)
    merged = program.tuning.merge(program.state.params, program.state.frozen["params"])
    assert leaves(merged) == leaves(MODEL.shapes())
    whole = named(program_of(Everything()).state.params)
    for part in (program.state.params, program.state.frozen["params"]):
        for name, leaf in named(part).items():
            assert leaf.sharding.spec == whole[name].sharding.spec, name
    state = start(program)
    sharded = [leaf for leaf in jax.tree.leaves(state.frozen) if not leaf.is_fully_replicated]
    assert sharded


def test_references_are_sharded_by_their_own_axes_and_reach_the_loss():
    teacher = Model(override(SPEC, {"embed": 32}))

    class Regularised(type(OBJECTIVE)):
        def loss(self, model, params, batch, *, frozen, rngs, train):
            terms, sums = super().loss(model, params, batch, frozen={}, rngs=rngs, train=train)
            hidden, _ = teacher.hidden(frozen["teacher"], batch)
            return terms, sums | {"teacher": (jnp.sum(hidden**2).astype(jnp.float32), 1.0)}

    layout = Layout({"fsdp": 8}, compiler_options={"cpu": COMPILER})
    program = build(
        MODEL,
        Regularised(),
        OPTIMIZERS["adamw"],
        array_data(pack=False).batch_shapes(OBJECTIVE),
        layout=layout,
        mesh=make_mesh(layout),
        references={"teacher": teacher},
    )
    like = program.state.frozen["references"]["teacher"]
    assert leaves(like) == leaves(teacher.shapes())
    params = jax.jit(
        lambda: (MODEL.init(jax.random.key(0)), teacher.init(jax.random.key(1))),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, (program.params, like)),
    )()
    kept = jax.device_get(params[1])
    state = program.start_from(params[0], 0, {"teacher": params[1]})
    sharding = state.frozen["references"]["teacher"]["token_embedding"]["embedding"].sharding
    assert not sharding.is_fully_replicated
    state, metrics = program.step(state, place(program, batches(1)[0]))
    assert metrics["sums"]["teacher"][0] > 0
    assert_same(state.frozen["references"]["teacher"], kept)


def test_evaluation_gets_merged_parameters_averaged_if_there_is_an_average():
    program = program_of(TOP, ema=0.9)
    state = start(program)
    assert leaves(whole_params(state, program.tuning)) == leaves(MODEL.shapes())
    state = state.replace(extra=state.extra | {"ema": jax.tree.map(lambda x: 0 * x, state.params)})
    whole = named(whole_params(state, program.tuning))
    assert np.all(whole["lm_head/projection/kernel"] == 0)
    assert np.any(whole["token_embedding/embedding"] != 0)


def test_a_tuning_of_ones_own_is_registered_by_its_name():
    @dataclasses.dataclass(frozen=True)
    class OnlyHead(Tuning):
        depth: int = 1

    assert from_json(OnlyHead(2).to_json()) == OnlyHead(2)
    with pytest.raises(InputError, match="a tuning of this name is defined by t5lite"):
        type("ByPath", (Tuning,), {})


# Checkpoints.


def saved_run(folder, tuning, *, steps=(1, 2), **options):
    """Trains and saves at some steps; returns the program and the last state."""
    program = program_of(tuning)
    state = start(program)
    with Checkpoints(keep=9, **options).open(folder) as checkpointer:
        for step, batch in enumerate(batches(max(steps)), 1):
            state, _ = program.step(state, place(program, batch))
            if step in steps:
                checkpointer.save(step, state, progress={})
    return program, state


@pytest.mark.parametrize("tuning", [HALF, TOP], ids=["half", "top"])
def test_frozen_parameters_are_saved_once(tuning, tmp_path):
    program, state = saved_run(tmp_path, tuning)
    (folder,) = (tmp_path / "frozen").iterdir()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for step in ("1", "2"):
        folder_of_step = tmp_path / "checkpoints" / step / "state"
        names = named(ocp.PyTreeCheckpointHandler().metadata(folder_of_step).tree)
        assert not any(name.startswith("frozen") for name in names)
    with Checkpoints(keep=9).open(tmp_path) as checkpointer:
        restored = checkpointer.restore(program.state)
        assert_same(restored.state, state)
        for leaf, like in zip(*map(jax.tree.leaves, (restored.state, program.state)), strict=True):
            assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)
        checkpointer.save(3, restored.state, progress={})
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    frozen = load_params(tmp_path, part="frozen/params").params
    assert_same(frozen, bound(tuning).split(first_params())[1])


def test_a_damaged_frozen_part_is_noticed(tmp_path):
    program, _ = saved_run(tmp_path, HALF, steps=(1,))
    (folder,) = (tmp_path / "frozen").iterdir()
    for path in (folder / "state").rglob("*"):
        if path.is_file() and path.stat().st_size > 10_000:
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
    with Checkpoints().open(tmp_path) as checkpointer, pytest.raises(CheckpointError):
        checkpointer.restore(program.state)


def test_frozen_parameters_can_be_referred_to_by_folder_and_fingerprint(tmp_path):
    program, state = saved_run(tmp_path, TOP, frozen="refer", restore_from="gs://base")
    assert not (tmp_path / "frozen").exists()
    places = jax.tree.map(lambda leaf: leaf.sharding, program.state.frozen)
    read = []

    def frozen(folder, scale=1):
        read.append(folder)
        tree = {"params": bound(TOP).split(first_params())[1], "references": {}}
        return jax.device_put(jax.tree.map(lambda leaf: scale * leaf, tree), places)

    with Checkpoints().open(tmp_path) as checkpointer:
        with pytest.raises(InputError, match="its frozen parameters are in 'gs://base'"):
            checkpointer.restore(program.state)
        with pytest.raises(InputError, match="in 'gs://base' have changed since"):
            checkpointer.restore(program.state, frozen=lambda folder: frozen(folder, 2))
        restored = checkpointer.restore(program.state, frozen=frozen)
        assert_same(restored.state, state)
        checkpointer.save(3, restored.state, progress={})  # it goes on to refer
    assert not (tmp_path / "frozen").exists()
    assert read == ["gs://base"] * 2


def test_the_tuning_of_a_folder(tmp_path):
    assert read_tuning(tmp_path) == Everything()
    write_tuning(tmp_path, HALF)
    assert read_tuning(tmp_path) == HALF


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "tuning.json is damaged"),
        ("[]", "names no tuning"),
        ('{"include": []}', "names no tuning"),
        ('{"tuning": "Mine"}', "unknown tuning 'Mine'.*import the module that defines it"),
        ('{"tuning": "ByPath", "rank": 1}', "'ByPath': .* argument 'rank'"),
    ],
)
def test_a_damaged_tuning_is_refused(tmp_path, text, message):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(InputError, match=message):
        read_tuning(tmp_path)
