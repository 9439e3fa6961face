"""`t5lite.train` from Python: what goes in, what a run leaves behind, and that it learns."""

import functools
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_runs import FAST, OBJECTIVE, OPTIMIZERS, SPEC, VOCAB, array_data, train

import t5lite
from t5lite.data import ArrayData, Bytes, Class, FileData, PackedData, write_packed
from t5lite.decoding import Settings, generate
from t5lite.errors import InputError
from t5lite.experiment import Experiment
from t5lite.experiment.settings import check_model
from t5lite.layers import ClassificationHeadSpec
from t5lite.models import ComputeSpec, load_spec, override
from t5lite.objectives import Classification, Seq2Seq
from t5lite.optimizers import SGD, Adafactor, AdamWScale, Lion, schedules
from t5lite.parallel import Layout, make_mesh
from t5lite.reporting import JsonLines, Report, TensorBoard
from t5lite.training import Checkpoints, Profile, Stop, Update

EOS, IDS, LENGTH = 1, 16, 6
COPIER = override(
    "t5_1_1_nano",
    {
        "vocab": IDS,
        "embed": 64,
        "*.num_layers": 1,
        "*.blocks.*.attention.head_dim": 16,
        "decoder.blocks.*.cross_attention.head_dim": 16,
        "*.blocks.*.mlp.hidden": 128,
    },
)
STEPS = 250


def sequences(count, seed):
    return np.random.default_rng(seed).integers(2, IDS, (count, LENGTH)).astype(np.int32)


def copy_data(**changes):
    examples = [{"inputs": row, "targets": row} for row in sequences(8000, seed=0)]
    return ArrayData(
        examples,
        **({"lengths": {"inputs": 7, "targets": 7}, "batch_size": 64, "pack": False} | changes),
    )


class Mine:
    """A writer of one's own, in ten lines."""

    def __init__(self, model_dir):
        self.lines = []
        Mine.latest = self

    def write(self, step, metrics):
        self.lines.append((step, metrics["train/loss"]))

    def close(self):
        self.lines.append("closed")


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """What is tested here has nothing to do with devices, and two cores feel eight of them."""
    with pytest.MonkeyPatch.context() as patch:
        first = functools.partial(make_mesh, devices=jax.devices()[:1])
        patch.setattr("t5lite.experiment.definition.make_mesh", first)
        yield


@pytest.fixture(scope="module")
def copier(tmp_path_factory):
    """A model that has learnt to say its input, and where it was trained."""
    folder = tmp_path_factory.mktemp("copier")
    before = "tensorflow" in sys.modules  # of another file's tests, in this process
    rate = schedules.linear(peak=0.05, total_steps=STEPS, warmup_steps=30)
    trained = t5lite.train(
        str(folder),
        model=COPIER,
        objective=Seq2Seq(z_loss=0.0),
        data=copy_data(),
        optimizer=Adafactor(rate, min_dim_size_to_factor=8),
        steps=STEPS,
        update=Update(clip_norm=1.0),
        writers=[JsonLines, TensorBoard, Report, Mine],
        profile=Profile(steps=(3, 2)),
        log_every=50,
    )
    assert before or "tensorflow" not in sys.modules
    return trained, folder


@pytest.mark.slow
def test_a_copy_goes_through_cross_attention(copier):
    # Held-out sequences of random ids: nothing but the encoder knows what comes next.
    model, params = copier[0].model, copier[0].state.params
    inputs = np.pad(sequences(256, seed=1), ((0, 0), (0, 1)), constant_values=EOS)

    @jax.jit
    def decode(params, inputs):
        cache = model.start(params, {"encoder_input_tokens": inputs}, max_length=LENGTH + 1)
        return generate(
            functools.partial(model.extend, params),
            cache,
            jnp.zeros(len(inputs), jnp.int32),
            Settings(eos_ids=(EOS,)),
            capacity=LENGTH + 1,
        ).tokens

    written = np.asarray(decode(params, inputs))
    assert (written == inputs).all(axis=1).mean() >= 0.95
    # The inputs of another row give that row's copy.
    assert (np.asarray(decode(params, inputs[::-1])) == inputs).all(axis=1).mean() < 0.05


def test_a_run_leaves_what_a_person_looks_for(copier):
    trained, folder = copier
    assert load_spec(folder / "model.json") == COPIER
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [50, 100, 150, 200, 250]
    assert lines[-1]["train/loss"] < 0.1 < 1 < lines[0]["train/loss"]
    assert lines[-1]["train/learning_rate"] == pytest.approx(0.05 / 220, rel=1e-3)
    for name in ("gradient_norm", "parameter_norm", "tokens_per_second", "input_wait", "epoch"):
        assert lines[-1][f"train/{name}"] >= 0
    assert list(folder.glob("events.out.tfevents.*"))
    assert list(folder.glob("plugins/profile/*/*"))
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [str(STEPS)]
    about = json.loads((folder / "run.json").read_text())
    assert about["steps"] == STEPS
    assert len(about["examples"]) == 3
    for example in about["examples"]:  # arrays without a vocabulary are shown as ids
        source, target = example.split("\n→ ")
        assert source == target
        assert len(source.split()) == LENGTH
    assert sum(row[2] for row in about["parameters"]) == sum(
        leaf.size for leaf in jax.tree.leaves(trained.state.params)
    )
    assert about["versions"]["jax"] == jax.__version__
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert '<span class="status finished">' in page
    assert '<span class="path">position_bias' in page
    assert trained.state.step == STEPS
    assert Mine.latest.lines == [
        *[(line["step"], line["train/loss"]) for line in lines],
        "closed",
    ]


# Starting from another run.


def test_another_run_gives_its_parameters_and_what_is_missing_is_fresh(copier, tmp_path, capsys):
    trained, folder = copier
    deeper = override(COPIER, {"*.position_bias.per_layer": True})
    rules = [
        (r"(encoder|decoder)/layers/block_0/position_bias/.*", None),
        (None, r"(encoder|decoder)/position_bias/.*"),
    ]
    new = t5lite.train(
        str(tmp_path / "new"),
        model=deeper,
        objective=Seq2Seq(),
        data=copy_data(batch_size=8),
        optimizer=optax.sgd(0.0),
        steps=1,
        layout=Layout(compiler_options={"cpu": FAST}),
        update=Update(ema_decay=0.5),
        checkpoints=Checkpoints(restore_from=str(folder), restore_mapping=rules),
        writers=[JsonLines],
    )
    printed = capsys.readouterr().out
    assert f"parameters from {folder}/checkpoints/{STEPS}\n" in printed
    (fresh,) = re.findall("^fresh: (.*)", printed, re.MULTILINE)
    assert re.findall(r"(\w+)/layers/block_0/position_bias/\S+ \(128 parameters\)", fresh) == [
        "decoder",
        "encoder",
    ]
    (dropped,) = re.findall("^dropped: (.*)", printed, re.MULTILINE)
    assert re.findall(r"(\w+)/position_bias/", dropped) == ["decoder", "encoder"]
    old = {jax.tree_util.keystr(path): leaf for path, leaf in leaves(trained.state.params)}
    found = 0
    for path, leaf in leaves(new.state.params):
        if "position_bias" not in (name := jax.tree_util.keystr(path)):
            np.testing.assert_array_equal(leaf, old[name], err_msg=name)
            found += 1
    assert found == len(old) - 2
    # The average starts from them too.
    jax.tree.map(np.testing.assert_array_equal, new.state.extra["ema"], new.state.params)


leaves = jax.tree_util.tree_leaves_with_path


def test_a_missing_part_without_a_rule_is_an_error(copier, tmp_path):
    with pytest.raises(InputError, match=r"position_bias"):
        t5lite.train(
            str(tmp_path),
            model=override(COPIER, {"*.position_bias.per_layer": True}),
            objective=Seq2Seq(),
            data=copy_data(batch_size=8),
            optimizer=optax.sgd(0.0),
            steps=1,
            checkpoints=Checkpoints(restore_from=str(copier[1])),
        )


# Every optimizer, and every way of computing.

SMALL = override(SPEC, {"*.num_layers": 1})


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(Lion(0.01), id="lion"),
        pytest.param(SGD(0.1, momentum=0.9, nesterov=True), id="sgd"),
        pytest.param(AdamWScale(0.01), id="adamw_scale"),
        pytest.param(optax.chain(optax.scale_by_rms(), optax.scale(-0.01)), id="bare"),
    ],
)
def test_every_optimizer_takes_a_step(optimizer, tmp_path):
    trained = train(tmp_path, model=SMALL, optimizer=optimizer, steps=2, writers=[])
    assert trained.state.step == 2
    for leaf in jax.tree.leaves(trained.state.params):
        assert np.all(np.isfinite(leaf))


@pytest.mark.slow
def test_bfloat16_with_remat(tmp_path):
    trained = train(
        tmp_path,
        model=SMALL,
        compute=ComputeSpec(dtype="bfloat16", remat="full"),
        optimizer=OPTIMIZERS["adamw"],
        update=Update(num_microbatches=2),
        steps=3,
        callbacks=[StopAt(2)],
    )
    assert trained.state.step == 2
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(trained.state.params))
    (_, line) = (json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert 2 < line["train/loss"] < 5


class StopAt:
    every = 1

    def __init__(self, step):
        self.step = step

    def __call__(self, run, state, *, step):
        return Stop("enough") if step == self.step else None


# Bad input is an error before any device works.


class NotDue:
    def __call__(self, run, state, *, step):
        return None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "train.steps = 0"),
        ({"steps": 1.5}, "train.steps = 1.5"),
        ({"steps": True}, "train.steps = True"),
        ({"log_every": 0}, "train.log_every = 0"),
        ({"callbacks": [NotDue()]}, "NotDue.* `every`"),
        ({"callbacks": [3]}, "train.callbacks: 3 must be callable"),
        ({"model": "t5_1_1_nan"}, "did you mean t5_1_1_nano"),
        ({"optimizer": "adam"}, "optimizer = 'adam'"),
        ({"layout": Layout({"data": 3})}, "does not multiply to the 1 devices"),
        ({"update": Update(num_microbatches=3)}, "num_microbatches = 3: .* batch size 8"),
        ({"data": array_data(lengths={"inputs": 12})}, "targets"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_bad_input(changes, message, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(InputError, match=message) as error:
        train(folder, **changes)
    assert len(str(error.value).splitlines()) <= 4
    assert not (folder / "model.json").exists()


def test_rows_that_are_longer_than_learned_positions(tmp_path):
    spec = override("gpt_nano", {"vocab": VOCAB, "decoder.position_embedding.max_length": 21})
    with pytest.raises(InputError, match="22 tokens: the model has learned positions for 21"):
        train(tmp_path / "run", model=spec, objective=Seq2Seq())  # 12 inputs and 10 targets
    assert not (tmp_path / "run").exists()


def test_classes_that_the_head_does_not_have(tmp_path):
    lines = "".join(f"text {row},{row % 3}\n" for row in range(60))
    (tmp_path / "data.csv").write_text(f"text,topic\n{lines}")
    data = FileData(
        str(tmp_path / "data.csv"),
        features={"inputs": "{text}", "labels": Class("topic"), "other": Class("text")},
        vocab=Bytes(),
        lengths={"inputs": 16},
        batch_size=8,
        validation_share=0.0,
    )

    def with_classes(count):
        heads = [ClassificationHeadSpec(num_classes=count)]
        return override("bert_nano", {"vocab": 384, "heads": heads})

    fitting = {"model": with_classes(3), "objective": Classification(), "data": data}
    check_model(Experiment(str(tmp_path / "run"), **fitting, optimizer=None))
    spec = with_classes(2)
    with pytest.raises(InputError, match=r"num_classes = 2: the data have 3 classes; .* least 3"):
        train(tmp_path / "run", model=spec, objective=Classification(), data=data)
    assert not (tmp_path / "run").exists()


def test_a_cache_of_other_rows_leaves_no_folder(tmp_path):
    write_packed(array_data(), OBJECTIVE, tmp_path / "cache")
    data = PackedData(str(tmp_path / "cache"), lengths={"inputs": 12, "targets": 9}, batch_size=8)
    with pytest.raises(InputError, match="was made with"):
        train(tmp_path / "run", data=data)
    assert not (tmp_path / "run").exists()


def test_a_vocabulary_that_the_model_has_no_embeddings_for(tmp_path):
    data = ArrayData(
        [{"inputs": np.arange(5), "targets": np.arange(5)}],
        lengths={"inputs": 8, "targets": 8},
        batch_size=8,
        vocab=Bytes(),
    )
    with pytest.raises(InputError, match=f'384 ids but the model only {VOCAB} .*"vocab": 384'):
        train(tmp_path, data=data)


@pytest.mark.parametrize("name", ["inputs", "targets"])
def test_an_id_that_the_model_has_no_embedding_for(name, tmp_path):
    example = {"inputs": np.arange(2, 6), "targets": np.arange(2, 6)}
    example[name] = np.array([3, VOCAB])
    data = ArrayData([example] * 9, lengths={"inputs": 8, "targets": 8}, batch_size=8)
    with pytest.raises(
        InputError, match=f"tokens: the id {VOCAB} exceeds the model's {VOCAB} embeddings"
    ):
        train(tmp_path, data=data, model=SMALL)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        train(tmp_path / "file")
