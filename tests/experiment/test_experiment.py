"""A run as one frozen object: its arguments, frozen parameters, and the references of a loss."""

import dataclasses
import inspect
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from preferences import Preferences
from saved_models import save_model
from tiny_runs import OBJECTIVE, SPEC, array_data, train

import t5lite
from t5lite.data import ArrayData, MixtureData
from t5lite.errors import InputError
from t5lite.evaluation import HeldOut
from t5lite.experiment import Experiment
from t5lite.experiment.description import count
from t5lite.experiment.evaluation import evaluate
from t5lite.experiment.inspection import report
from t5lite.experiment.start import check_referred
from t5lite.layers import AdapterSpec, Leaf, StorageSpec
from t5lite.models import ComputeSpec, Model, override
from t5lite.objectives import Seq2Seq
from t5lite.optimizers import AdamW
from t5lite.parallel import make_mesh
from t5lite.training import ByPath, Checkpoints, Everything, Update
from t5lite.training.restore import named

DECODER = ByPath(include="^decoder/")


@dataclasses.dataclass(frozen=True)
class ShiftSpec(AdapterSpec):
    """Adds a vector to a projection."""

    def leaves(self, matrix):
        shape, axes, n = matrix
        return {"shift": Leaf(shape[n:], axes[n:], jax.nn.initializers.zeros)}

    def flops(self, matrix):
        return 0

    def apply(self, leaves, x, inner, affine):
        y = inner(x)
        return y + jnp.broadcast_to(leaves["shift"].astype(y.dtype), y.shape)


@dataclasses.dataclass(frozen=True)
class BytesSpec(StorageSpec):
    """Rounded to int8."""

    def encode(self, matrix, contracted):
        return {"values": jnp.round(matrix).astype(jnp.int8)}

    def axes(self, axes, contracted):
        return {"values": axes}

    def decode(self, leaves, dtype):
        return leaves["values"].astype(dtype)


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Runs of one program compile it once: their functions are others, their code is the same."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Nothing here depends on devices, and programs of one compile faster."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("experiment.definition", "inference.loading"):
            patch.setattr(
                f"t5lite.{module}.make_mesh",
                lambda layout, devices=None: make_mesh(layout, devices or jax.devices()[:1]),
            )
        yield


def experiment(folder, **changes):
    options = {
        "model": SPEC,
        "objective": OBJECTIVE,
        "data": array_data(),
        "optimizer": AdamW(0.01),
        "steps": 2,
    }
    return Experiment(str(folder), **(options | changes))


def test_train_takes_the_arguments_of_an_experiment():
    ours, theirs = inspect.signature(t5lite.train), inspect.signature(Experiment)
    assert list(ours.parameters.values()) == list(theirs.parameters.values())
    assert [*ours.parameters] == [field.name for field in dataclasses.fields(Experiment)]
    for name in ours.parameters:
        assert f"{name}: " in t5lite.train.__doc__


def test_an_experiment_is_frozen_and_reads_nothing(tmp_path):
    made = experiment(tmp_path / "run", model="no/such/folder")
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.steps = 3
    changed = dataclasses.replace(made, model=SPEC)
    assert changed.spec is SPEC
    with pytest.raises(InputError, match="no/such/folder"):
        made.spec  # noqa: B018
    assert not (tmp_path / "run").exists()


# --- frozen parameters -----------------------------------------------------------------------


def test_frozen_parameters_stay_and_the_run_resumes_and_opens(tmp_path, capsys):
    first = train(tmp_path / "run", steps=2, tuning=DECODER)
    assert {*first.state.params} == {"decoder"}
    assert "decoder" not in first.state.frozen["params"]
    trained = count(first.state.params)
    assert f"parameters ({trained:,} trained)" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "tuning.json").read_text())["tuning"] == "ByPath"

    second = train(tmp_path / "run", steps=4, tuning=DECODER)
    before, after = named(first.state.frozen["params"]), named(second.state.frozen["params"])
    assert all(np.array_equal(before[name], after[name]) for name in before)
    moved = named(first.state.params), named(second.state.params)
    assert not any(np.array_equal(moved[0][name], moved[1][name]) for name in moved[0])

    loaded = named(t5lite.load(tmp_path / "run").params)
    assert {*loaded} == {*named(second.model.shapes())}
    assert all(np.array_equal(loaded[name], after[name]) for name in after)


def test_frozen_parameters_can_be_read_again_from_where_a_run_started(tmp_path):
    train(tmp_path / "base", steps=1, seed=5)
    refer = Checkpoints(restore_from=str(tmp_path / "base"), frozen="refer")
    options = {"tuning": DECODER, "objective": Near(references={"start": "start"})}
    train(
        tmp_path / "saved",
        steps=4,
        **options,
        checkpoints=dataclasses.replace(refer, frozen="save"),
    )
    train(tmp_path / "run", steps=2, **options, checkpoints=refer)
    train(tmp_path / "run", steps=4, **options, checkpoints=refer)
    assert (tmp_path / "saved" / "frozen").exists()
    assert not (tmp_path / "run" / "frozen").exists()
    one, other = (named(t5lite.load(tmp_path / name).params) for name in ("run", "saved"))
    assert all(np.array_equal(one[name], other[name]) for name in other)
    steps = metrics_of(tmp_path / "run"), metrics_of(tmp_path / "saved")
    assert steps[0][4]["train/from_start"] == steps[1][4]["train/from_start"] > 0


def test_adapters_are_drawn_beside_the_parameters_of_a_folder(tmp_path):
    train(tmp_path / "base", steps=1, seed=5, update=Update())
    adapted = SPEC.replace(adapters=(ShiftSpec("decoder/.*attention/query"),))
    options = {
        "model": adapted,
        "tuning": ByPath(include="/shift$"),
        "update": Update(),
        "checkpoints": Checkpoints(restore_from=str(tmp_path / "base"), frozen="refer"),
    }
    train(tmp_path / "run", steps=1, **options)
    last = train(tmp_path / "run", steps=2, **options)
    shifts = named(last.state.params)
    assert all(map(np.any, shifts.values()))
    base, run = (named(t5lite.load(tmp_path / name).params) for name in ("base", "run"))
    assert run.keys() - base.keys() == shifts.keys()
    assert all(np.array_equal(run[name], leaf) for name, leaf in (base | shifts).items())
    assert not (tmp_path / "run" / "frozen").exists()


def test_encoded_weights_cannot_be_trained(tmp_path):
    compute = ComputeSpec(storage=(BytesSpec("attention/query"),))
    with pytest.raises(InputError, match="query/kernel/values is int8, which has no gradient"):
        experiment(tmp_path / "run", compute=compute).train()


def test_a_drawn_parameter_cannot_be_read_again():
    model = Model(SPEC)
    name = next(name for name in named(model.shapes()) if name.startswith("encoder/"))
    start = types.SimpleNamespace(fresh={name: 1}, opened=types.SimpleNamespace(folder="base"))
    with pytest.raises(InputError, match=f"{name} is frozen and drawn, not read from base"):
        check_referred(start, DECODER, model, field="Checkpoints.frozen")
    check_referred(start, ByPath(include=name), model, field="Checkpoints.frozen")


def test_a_run_is_not_resumed_with_another_tuning(tmp_path):
    train(tmp_path / "run", steps=1, tuning=DECODER)
    with pytest.raises(
        InputError, match=r"^train.tuning = Everything\(\): .* holds a run"
    ) as error:
        train(tmp_path / "run", steps=2)
    assert error.value.field == "train.tuning"


def test_inspect_counts_trained_and_frozen_parameters(tmp_path):
    text = report(experiment(tmp_path / "run", tuning=DECODER), examples=0)
    program = experiment(tmp_path / "run", tuning=DECODER).program(
        make_mesh(t5lite.parallel.Layout())
    )
    trained = sum(leaf.size for leaf in jax.tree.leaves(program.state.params))
    frozen = sum(leaf.size for leaf in jax.tree.leaves(program.state.frozen))
    assert f"trained: {trained:,}, frozen: {frozen:,}" in text
    assert "frozen parameters" in text
    assert "frozen" not in report(experiment(tmp_path / "run"), examples=0)


# --- references ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Near(Seq2Seq):
    """Adds the distance to the parameters of each reference, of which only the metric is asked."""

    def loss(self, model, params, batch, *, frozen, rngs=None, train=False):
        terms, metrics = super().loss(model, params, batch, rngs=rngs or {}, train=train)
        for name, reference in frozen.items():
            distances = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), params, reference)
            distance = sum(jax.tree.leaves(distances))
            metrics = metrics | {f"from_{name}": (distance, jnp.float32(1))}
        return terms, metrics


def metrics_of(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if "train/loss" in line}


def test_references_are_other_folders_or_the_start(tmp_path, capsys):
    train(tmp_path / "teacher", steps=1, seed=7, update=Update())
    run, teacher = tmp_path / "run", str(tmp_path / "teacher")
    near = Near(references={"start": "start", "teacher": teacher})
    options = {"objective": near, "update": Update(), "optimizer": AdamW(0.01)}
    train(run, steps=2, **options)
    assert f"reference teacher from {teacher}" in capsys.readouterr().out
    lines = metrics_of(run)
    assert lines[1]["train/from_start"] == 0
    assert lines[2]["train/from_start"] > 0
    assert lines[1]["train/from_teacher"] > 0
    # Resumed, it is still the start of the first run.
    train(run, steps=3, **options)
    assert metrics_of(run)[3]["train/from_start"] > lines[2]["train/from_start"]


def test_a_reference_that_is_not_there_is_named_by_its_field(tmp_path):
    near = Near(references={"teacher": str(tmp_path / "none")})
    with pytest.raises(InputError, match="there is no folder") as error:
        train(tmp_path / "run", objective=near)
    assert error.value.field == "Near.references"
    assert not (tmp_path / "run").exists()


def test_a_reference_may_be_of_another_size(tmp_path):
    wide = override(SPEC, {"*.blocks.*.mlp.hidden": 32})
    train(tmp_path / "teacher", model=wide, steps=1)
    near = Seq2Seq(references={"teacher": str(tmp_path / "teacher")})
    made = experiment(tmp_path / "run", objective=near)
    state = made.program(make_mesh(t5lite.parallel.Layout())).state
    sizes = [
        sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (state.params, state.frozen)
    ]
    assert sizes[1] > sizes[0]


def test_evaluation_reads_the_references_of_the_run(tmp_path):
    train(tmp_path / "teacher", steps=1, seed=7, update=Update())
    near = Near(references={"start": "start", "teacher": str(tmp_path / "teacher")})
    options = {"objective": near, "update": Update(), "optimizer": AdamW(0.01)}
    options["callbacks"] = [HeldOut(every=2)]
    found = train(tmp_path / "run", steps=2, **options).metrics
    assert found["held_out/from_start"] > 0
    measured = evaluate(experiment(tmp_path / "run", model=None, **options))
    assert measured == pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize("tuning", [Everything(), ByPath(include="^decoder/layers/")])
@pytest.mark.parametrize("frozen", ["save", "refer"])
def test_evaluation_reads_the_policy_that_preferences_start_from(tmp_path, frozen, tuning):
    spec = override("gpt_nano", {"vocab": 40, "embed": 16, "*.num_layers": 1})
    save_model(tmp_path / "base", spec, Model(spec).init(jax.random.key(3)))
    rng = np.random.default_rng(0)
    pairs = [
        {name: rng.integers(3, 40, 6).astype(np.int32) for name in Preferences.features}
        for _ in range(24)
    ]
    sizes = {"lengths": dict.fromkeys(Preferences.features, 12), "batch_size": 8, "pack": False}
    options = {
        "model": spec,
        "objective": Preferences(),
        "data": ArrayData(pairs[:16], pairs[16:], **sizes),
        "optimizer": AdamW(0.01),
        "tuning": tuning,
        "checkpoints": Checkpoints(restore_from=str(tmp_path / "base"), frozen=frozen),
        "callbacks": [HeldOut(every=4)],
        "update": Update(),
    }
    run = tmp_path / "run"
    trained = train(run, steps=4, **options).metrics
    assert abs(trained["held_out/loss"] - np.log(2)) > 1e-5  # the policy has moved
    assert evaluate(experiment(run, **options)) == pytest.approx(trained, rel=1e-5)
    if frozen == "refer":
        shutil.rmtree(tmp_path / "base")
        save_model(tmp_path / "base", spec, Model(spec).init(jax.random.key(4)))
        with pytest.raises(InputError, match=r"frozen parameters .*base.* ha(s|ve) changed since"):
            evaluate(experiment(run, **options))
    with pytest.raises(InputError, match=r"is the start of a run, which .* does not hold") as error:
        evaluate(experiment(run, **options), checkpoint=str(tmp_path / "base"))
    assert error.value.field == "Preferences.references"


def test_evaluation_prints_the_loss_of_each_part_of_a_mixture(tmp_path, capsys):
    data = array_data()
    sizes = {"lengths": data.lengths, "batch_size": 8}
    mixture = MixtureData(
        {"one": data, "other": array_data()}, rates={"one": 1, "other": 1}, **sizes
    )
    train(tmp_path / "run", steps=1)
    options = {"model": None, "data": mixture, "callbacks": [HeldOut(every=1)]}
    metrics = evaluate(experiment(tmp_path / "run", **options))
    printed = capsys.readouterr().out
    for part in ("one", "other"):
        assert metrics[f"held_out/{part}/loss"] == pytest.approx(metrics["held_out/loss"], rel=1e-5)
        assert f"held_out/{part}/loss " in printed
