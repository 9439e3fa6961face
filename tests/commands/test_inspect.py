"""`t5lite inspect` on arrays in memory: what it says is compared with what a run really has.

Gin files here say `import test_inspect`.
"""

import dataclasses
import re
import textwrap
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5lite import main
from t5lite.commands.configured import experiment_of
from t5lite.data import ArrayData, Bytes
from t5lite.data.labels import save_labels
from t5lite.errors import InputError
from t5lite.experiment import Experiment, inspection
from t5lite.experiment.inspection import _rates
from t5lite.experiment.preview import batch_lines, look
from t5lite.experiment.tree import bytes_of, parameter_lines
from t5lite.models import Model, forward_flops, override, preset, save_spec
from t5lite.objectives import Seq2Seq, SpanCorruption
from t5lite.optimizers import Adafactor, AdamW
from t5lite.optimizers.schedules import cosine
from t5lite.parallel import Layout, make_mesh
from t5lite.text import in_bytes, in_flops
from t5lite.training import Checkpoints, Update, build, initial_state, transformation

TEXT = "The cat [sat] on the mat, and looked at the other cat for a long time. "
TINY = override("t5_1_1_nano", {"vocab": 384, "embed": 16, "*.blocks.*.mlp.hidden": 8})
FULL_LINE = 100


def ids(text):
    return np.array(Bytes().encode(text), np.int32)


def text_data(**options):
    given: dict = {"lengths": {"inputs": 64, "targets": 32}, "batch_size": 8, "vocab": Bytes()}
    return ArrayData([{"targets": ids(TEXT)}] * 40, **(given | options))


def pair_data(sizes=((2, 1), (4, 1), (7, 3), (1, 2)), **options):
    """Pairs of so many tokens of inputs and targets, EOS not counted; a batch takes four rows."""
    pairs = [{"inputs": np.full(m, 9), "targets": np.full(n, 9)} for m, n in sizes]
    given: dict = {"lengths": {"inputs": 8, "targets": 4}, "batch_size": 4, "num_shards": 1}
    return ArrayData(pairs, **(given | options))


def arguments(tmp_path, **options):
    return {
        "model_dir": str(tmp_path / "run"),
        "model": TINY,
        "objective": SpanCorruption(),
        "data": text_data(),
        "optimizer": Adafactor(learning_rate=0.01),
        "steps": 50,
    } | options


def report(*, examples=5, split="train", **given):
    return inspection.report(Experiment(**given), examples=examples, split=split)


def section(text, title):
    (found,) = re.findall(rf"^── {title} ─+\n(.*?)(?:\n\n──|\Z)", text, re.DOTALL | re.MULTILINE)
    return found


def program(layout, optimizer=Adafactor(learning_rate=0.01), spec=TINY, update=Update(), rows=8):
    shapes = text_data(batch_size=rows).batch_shapes(SpanCorruption())
    return build(
        Model(spec),
        SpanCorruption(),
        optimizer,
        shapes,
        layout=layout,
        mesh=make_mesh(layout),
        update=update,
    )


# --- the whole ----------------------------------------------------------------------------------


def test_report_has_every_section_in_lines_that_fit(tmp_path):
    text = report(**arguments(tmp_path))
    titles = re.findall(r"^── (.*?) ─+$", text, re.MULTILINE)
    assert titles == ["the run", "5 examples of 'train'", "the batch", "the model", "the cost"]
    assert max(map(len, text.splitlines())) <= FULL_LINE
    assert all(line == line.rstrip() for line in text.splitlines())


def test_nothing_is_written_and_no_array_is_made(tmp_path):
    before = len(jax.live_arrays())
    report(**arguments(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert len(jax.live_arrays()) == before


def test_the_largest_preset_takes_seconds_and_does_without_its_data(tmp_path):
    @dataclasses.dataclass(frozen=True, eq=False)
    class FarAway(ArrayData):
        def train_batches(self, *args, **options):
            raise OSError("no network\nand more")

    data = FarAway([{"targets": ids(TEXT)}], lengths={"inputs": 64, "targets": 32}, batch_size=8)
    data = dataclasses.replace(data, vocab=Bytes())
    start = time.perf_counter()
    text = report(**arguments(tmp_path, model="t5_1_1_xxl", data=data))
    assert time.perf_counter() - start < 20
    assert section(text, "data") == "  cannot be read here: OSError: no network"
    assert "11,135,332,352" in section(text, "the model")
    assert "examples of" not in text
    assert "padding  " not in section(text, "the batch")


# --- the run ------------------------------------------------------------------------------------


def test_where_a_run_would_start(tmp_path, monkeypatch):
    def start(**options):
        text = section(report(**arguments(tmp_path, examples=0, **options)), "the run")
        return " ".join(text.partition("objective ")[0].split())

    assert "run: a new run model" in start()
    with pytest.raises(InputError, match="there is no folder 'elsewhere'"):
        start(checkpoints=Checkpoints(restore_from="elsewhere"))

    with Checkpoints().open(tmp_path / "run") as checkpointer:
        checkpointer.save(20, {"a": np.zeros(2)}, progress={})
    save_spec(tmp_path / "run" / "model.json", TINY)
    Bytes().save(tmp_path / "run" / "vocabulary")
    (tmp_path / "run/checkpoints/30.orbax-checkpoint-tmp").mkdir()  # an interrupted save

    def contents():
        paths = sorted((tmp_path / "run").rglob("*"))
        return [
            (path, path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in paths
        ]

    before = contents()
    assert "would resume at step 20 of 50" in start()
    assert "finished, at step 20 of 20" in start(steps=20)
    with pytest.raises(InputError, match=r"(?s)another model.*encoder.num_layers: 2 -> 3"):
        start(model=override(TINY, {"encoder.num_layers": 3}))
    with pytest.raises(InputError, match="another vocabulary"):
        start(data=text_data(vocab=Bytes(99)))
    assert contents() == before
    save_labels(tmp_path / "run", {"labels": ["b", "a"]})
    monkeypatch.setattr(ArrayData, "labels", lambda data: {"labels": ["a", "b"]})
    with pytest.raises(InputError, match="the labels of 'labels' are not"):
        start()


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (0.25, "0.25 throughout"),
        (
            cosine(peak=0.5, warmup_steps=137, total_steps=10_000, end=0.001),
            "0 at 0 → 0.5 at 137 (highest) → 0.256 at 5,000 → 0.001 at 10,000",
        ),
    ],
)
def test_learning_rates(schedule, expected):
    assert _rates(AdamW(learning_rate=schedule), 10_001) == expected


def test_steps_tokens_and_epochs(tmp_path):
    given = arguments(
        tmp_path, objective=Seq2Seq(), data=pair_data(pack=False, batch_size=8), steps=30
    )
    text = " ".join(section(report(**given), "the run").split())
    assert "30 × 8 rows × (8 + 4) tokens = 96 a step, 2,880 in all" in text
    assert "about 60 epochs" in text  # a batch is all four examples, twice


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ({"steps": None, "epochs": 20}, "20 epochs: about 10 × 8 rows"),
        ({"steps": 30, "epochs": 20}, "30 steps or 20 epochs: about 10 × 8 rows"),
        ({"steps": 3, "epochs": 20}, "3 steps or 20 epochs: 3 × 8 rows"),
        # Of 96 places a step, 8 × (4 + 3) hold a token.
        ({"steps": None, "tokens": 560}, "560 tokens: about 10 × 8 rows"),
    ],
)
def test_runs_that_end_by_tokens_or_epochs(tmp_path, ends, expected):
    given = arguments(tmp_path, objective=Seq2Seq(), data=pair_data(pack=False, batch_size=8))
    text = " ".join(section(report(**given | ends), "the run").split())
    assert expected in text


def test_what_differs_from_defaults_is_named(tmp_path):
    given = arguments(
        tmp_path,
        objective=SpanCorruption(noise_density=0.25),
        optimizer=optax.with_extra_args_support(optax.sgd(0.1)),
        update=Update(clip_norm=1.0),
        model="t5_1_1_nano",
    )
    text = section(report(**given), "the run")
    assert "SpanCorruption(noise_density=0.25)" in text
    assert "Update(clip_norm=1.0)" in text
    assert re.search(r"model +t5_1_1_nano\n", text)
    assert "inside the optimizer" in text
    assert "devices        8 × cpu, as data 8" in text


def test_a_mesh_that_does_not_fit_is_shown_without_its_devices(tmp_path):
    layout = Layout(mesh={"fsdp": 16})
    text = report(**arguments(tmp_path, layout=layout, data=text_data(batch_size=32)))
    assert "shown for 16, as fsdp 16; 8 × cpu are here, and train would refuse" in text
    assert "[32, 64]  int32    [2, 64] a device" in section(text, "the batch")


# --- data ---------------------------------------------------------------------------------------


def test_examples_are_text_with_the_spans_marked(tmp_path):
    shown = section(report(**arguments(tmp_path, examples=2)), "2 examples of 'train'")
    texts = re.split(r"^ +\d  \d+ inputs \+ \d+ targets$", shown, flags=re.MULTILINE)[1:]
    assert len(texts) == 2
    for text in texts:
        text = " ".join(text.split())
        assert text.count("«") == text.count("»") > 0
        assert re.sub("[«»]", "", text) in 3 * TEXT


def test_inputs_and_targets_are_shown_side_by_side_and_cut(tmp_path):
    long = [{"inputs": ids(20 * TEXT), "targets": ids("a summary")}]
    data = ArrayData(long, vocab=Bytes(), lengths={"inputs": 999, "targets": 32}, batch_size=8)
    given = arguments(tmp_path, objective=Seq2Seq(), data=data)
    lines = section(report(**given), "1 examples of 'train'").splitlines()
    assert lines[0] == "  1  999 inputs + 10 targets"
    assert lines[1].startswith("     The cat [sat] on the mat")
    assert lines[2].endswith(" …")
    assert lines[3:] == ["     → a summary"]


def test_an_objective_may_show_its_examples_itself(tmp_path):
    class Shouting(Seq2Seq):
        def show(self, example, vocabulary):
            return [f"{len(example['inputs'])} AND {len(example['targets'])}!"]

    data = pair_data([(3, 2)], batch_size=8, vocab=Bytes())
    given = arguments(tmp_path, objective=Shouting(), data=data, examples=1)
    assert section(report(**given), "1 examples of 'train'").endswith("     4 AND 3!")


def test_padding_and_examples_a_row_equal_a_hand_count():
    """With EOS: 3 + 5 + 8 + 2 of 4 × 8 inputs, 2 + 2 + 4 + 3 of 4 × 4 targets."""
    seen = look(pair_data(pack=False), Seq2Seq(), split="train", count=0, seed=0)
    assert seen.padding == {"inputs": 1 - 18 / 32, "targets": 1 - 11 / 16}
    assert seen.examples_per_row == 1
    assert seen.epochs_per_row == 1 / 4
    # Two of 3 + 2 tokens in every row of 8 + 4, whatever the order.
    packed = look(pair_data([(2, 1)] * 8), Seq2Seq(), split="train", count=0, seed=0)
    assert packed.padding == {"inputs": 2 / 8, "targets": 0}
    assert packed.examples_per_row == 2
    assert packed.epochs_per_row == 2 / 8


def test_a_batch_that_is_too_large_for_any_memory_is_not_read():
    data = pair_data(pack=False, batch_size=2**40)
    seen = look(data, Seq2Seq(), split="train", count=0, seed=0)
    assert seen.padding == {"inputs": 1 - 18 / 32, "targets": 1 - 11 / 16}
    assert (seen.num_batches, seen.batch_size) == (1, 1024)
    assert "(the first batch of 1,024 rows)" in " ".join(batch_lines({}, seen))


def test_an_epoch_is_counted_in_texts_before_the_objective_cuts_them():
    """Each text is two stretches of 70 tokens, each of which fills a row's 64 inputs."""
    assert SpanCorruption().raw_length(64) == 70
    data = dataclasses.replace(text_data(), train=[{"targets": np.full(140, 9)}] * 40)
    seen = look(data, SpanCorruption(), split="train", count=0, seed=0)
    assert seen.epochs_per_row == pytest.approx(1 / 80, rel=0.05)


# --- the model ----------------------------------------------------------------------------------


def test_the_tree_of_one_layer():
    spec, layout = preset("t5_1_1_nano"), Layout(mesh={"fsdp": 2, "tensor": 4})
    lines = parameter_lines(program(layout, spec=spec), Model(spec).axes())
    start = next(i for i, line in enumerate(lines) if line.startswith("├ encoder"))
    expected = """
    ├ encoder                                                                      377,600  185 KiB
    │ ├ final_norm/scale              [128]         embed:fsdp                         128    256 B
    │ ├ layers ×2/block_0                                                          377,344  185 KiB
    │ │ ├ attention                                                                131,072   64 KiB
    │ │ │ ├ key/kernel                [128, 4, 32]  embed:fsdp heads:tensor kv      32,768   16 KiB
    │ │ │ ├ output/kernel             [4, 32, 128]  heads:tensor kv embed:fsdp      32,768   16 KiB
    │ │ │ ├ query/kernel              [128, 4, 32]  embed:fsdp heads:tensor kv      32,768   16 KiB
    │ │ │ └ value/kernel              [128, 4, 32]  embed:fsdp heads:tensor kv      32,768   16 KiB
    │ │ ├ attention_norm/scale        [128]         embed:fsdp                         256    512 B
    │ │ ├ mlp                                                                      245,760  120 KiB
    │ │ │ ├ down/kernel               [320, 128]    mlp:tensor embed:fsdp           81,920   40 KiB
    │ │ │ ├ gate/kernel               [128, 320]    embed:fsdp mlp:tensor           81,920   40 KiB
    │ │ │ └ up/kernel                 [128, 320]    embed:fsdp mlp:tensor           81,920   40 KiB
    │ │ └ mlp_norm/scale              [128]         embed:fsdp                         256    512 B
    │ └ position_bias/embedding       [4, 32]       heads:tensor relpos_buckets        128    128 B
    """
    assert lines[start : start + 15] == textwrap.dedent(expected).strip().splitlines()


def test_bytes_and_counts_equal_those_of_real_arrays(tmp_path):
    layout, update = Layout(mesh={"fsdp": 4, "tensor": 2}), Update(ema_decay=0.9)
    optimizer = Adafactor(learning_rate=0.1, min_dim_size_to_factor=8)
    model, built = Model(TINY), program(layout, optimizer, update=update)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), model.shapes())
    state = initial_state(
        params,
        transformation(optimizer, model.axes(), params),
        rng=jax.random.key(1),
        extra=update.extra(params),
    )
    state = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), state, built.state)
    real = {
        "parameters": (built.state.params, state.params),
        "their average": (built.state.extra, state.extra),
        "optimizer state": (built.state.opt_state, state.opt_state),
    }
    text = report(**arguments(tmp_path, layout=layout, optimizer=optimizer, update=update))
    cost = section(text, "the cost")
    for name, (shapes, arrays) in real.items():
        leaves = jax.tree.leaves(arrays)
        whole = sum(leaf.nbytes for leaf in leaves)
        each = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
        assert bytes_of(shapes) == (whole, each)
        row = rf"^  {name} +{re.escape(in_bytes(whole))} +{re.escape(in_bytes(each))}$"
        assert re.search(row, cost, re.MULTILINE)
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    each = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state.params))
    first = section(text, "the model").splitlines()[0]
    assert first.endswith(f" {count:,}  {in_bytes(each)}")


def test_arithmetic_is_that_of_the_rows(tmp_path):
    text = section(report(**arguments(tmp_path)), "the cost")
    row = forward_flops(TINY, encoder_length=64, decoder_length=32)
    assert f"arithmetic  {in_flops(row / 96)} a token forward, {in_flops(3 * row / 96)} in" in text
    assert f"{in_flops(8 * 3 * row)} a step" in text


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "0.977 KiB"), (1536, "1.5 KiB"), (3 * 2**40, "3 TiB")],
)
def test_bytes_in_words(value, expected):
    assert in_bytes(value) == expected


# --- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "t5_1_1_nona"}, "unknown preset"),
        ({"steps": 0}, "train.steps"),
        ({"examples": -1}, "examples = -1"),
        ({"split": "tset"}, "no examples in split 'tset'"),
        ({"data": text_data(lengths={"inputs": 64})}, "has no 'targets'"),
        ({"data": text_data(lengths={"inputs": 64, "targets": 8})}, "need at least"),
        ({"data": text_data(batch_size=6)}, "does not divide over 8 devices"),
        ({"model": override(TINY, {"vocab": 300})}, "has 384 ids"),
        ({"layout": Layout(mesh={"tensor": 8})}, "does not divide over the mesh"),
    ],
)
def test_mistakes_are_those_of_train(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        report(**arguments(tmp_path, **options))


def test_missing_arguments_are_named(tmp_path):
    given = arguments(tmp_path)
    del given["data"], given["optimizer"]
    with pytest.raises(InputError, match="train needs 'data' and 'optimizer'"):
        experiment_of(SimpleNamespace(bindings_of=lambda function: given))


def test_a_run_that_ends_nowhere(tmp_path):
    given = arguments(tmp_path)
    del given["steps"]
    with pytest.raises(InputError, match=r"train.steps, train.tokens or train.epochs"):
        report(**given)


GIN = """
from __gin__ import dynamic_registration
import t5lite
import test_inspect
t5lite.train.model_dir = "run"
t5lite.train.model = 't5_1_1_nano'
t5lite.train.objective = @t5lite.objectives.SpanCorruption()
t5lite.train.data = @test_inspect.text_data()
t5lite.train.optimizer = @t5lite.optimizers.Adafactor()
t5lite.optimizers.Adafactor.learning_rate = 0.01
t5lite.train.steps = 3
"""


def test_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.gin").write_text(GIN)
    assert main.main(["inspect", "--gin_file=a.gin", "--examples=2", "--gin.train.steps=4"]) == 0
    printed = capsys.readouterr().out
    assert "── 2 examples of 'train' ─" in printed
    assert "4 × 8 rows × (64 + 32) tokens" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["a.gin"]

    assert main.main(["inspect", "--gin_file=a.gin", "--gin.train.steps=0"]) == 2
    assert capsys.readouterr().err.startswith("t5lite: --gin.train.steps=0: train.steps = 0")
