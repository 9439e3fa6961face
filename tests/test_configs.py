"""Every file in configs/ says what it is and parses; every fragment in gin/ does one thing."""

import argparse
import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from small_folders import add_tokenizer, copied

import t5lite
from t5lite import configuration, objectives
from t5lite.commands.configured import experiment_of
from t5lite.configuration import Source
from t5lite.configuration.unused import check_used
from t5lite.data import Class
from t5lite.main import split_bindings
from t5lite.models import preset, save_spec
from t5lite.parallel import Layout, make_mesh
from t5lite.planning import Slice
from t5lite.training import process_shards
from t5lite.training.restore import named

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.gin"))
TRAIN, DATA, SCALE = (
    (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    for page in ("train", "data", "scale")
)
FRAGMENTS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "gin").rglob("*.gin"))
LABELS = ("Paper", "Hardware", "Time", "Reaches", "Command")
# What a fragment may bind: rooms, and parameters of `t5lite.train`.
SUBSYSTEMS = {
    "data": {"data"},
    "models": {"models", "model", "compute"},
    "objectives": {"objectives", "objective"},
    "optimizers": {"optimizers", "optimizer", "update"},
    "partitioning": {"parallel", "layout"},
    "tuning": {"training", "tuning"},
    "runs": {
        *("training", "evaluation", "checkpoints", "callbacks", "writers"),
        *("data", "model_dir", "steps", "update", "seed", "interop"),
    },
}


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def header(config):
    """The comment lines that a file opens with, without their `#`."""
    lines = Path(config).read_text(encoding="utf-8").splitlines()
    comment = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line.removeprefix("#").strip() for line in lines[:comment]]


def command(config):
    """The words of the command that a header gives; a remark in parentheses may follow it."""
    text = re.search(r"^Command: ((?:.*\\\n)*.*)", "\n".join(header(config)), re.MULTILINE)[1]
    return shlex.split(re.sub(r" \(.*\)$", "", text.replace("\\\n", " ")))


def read(*files):
    source = Source()
    for file in files:
        source.read_file(file)
    return source


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """For each config that starts from a folder, bindings that name a small one instead."""
    folder = tmp_path_factory.mktemp("pretrained")
    copied("bert", folder / "bert")
    add_tokenizer(folder / "bert")
    (folder / "t5").mkdir()
    save_spec(folder / "t5" / "model.json", preset("t5_1_1_nano"))
    chosen = {"configs/finetune_classify.gin": "bert", "configs/docstring_summary.gin": "t5"}
    starting = [config for config in CONFIGS if "INITIAL_CHECKPOINT_PATH =" in text_of(config)]
    assert sorted(starting) == sorted(chosen)
    lengths = {"bert": ["TASK_FEATURE_LENGTHS={'inputs': 16}"]}  # it has 20 positions
    return {
        config: [f"INITIAL_CHECKPOINT_PATH='{folder}/{name}'", *lengths.get(name, ())]
        for config, name in chosen.items()
    }


def text_of(file):
    return (ROOT / file).read_text(encoding="utf-8")


def free_macros(source):
    """Bindings for the macros that a fragment leaves to others."""
    text = "".join(map(text_of, FRAGMENTS))
    required = set(re.findall(r"^(\w+) *= *%gin.REQUIRED", text, re.MULTILINE))
    missing = source.used_macros.keys() - source.macros.keys() - {"gin.REQUIRED"}
    return [f"{name}=None" for name in missing | (required & source.macros.keys())]


def test_there_are_configs_and_fragments():
    assert CONFIGS
    assert FRAGMENTS


@pytest.mark.parametrize("config", CONFIGS)
def test_header_says_what_it_is_and_what_to_expect(config):
    lines = header(config)
    assert lines, f"{config} opens with a comment: what it is, then {': '.join(LABELS)}:"
    assert not lines[0].startswith(tuple(f"{label}:" for label in LABELS)), "first, what it is"
    for label in LABELS:
        (line,) = [line for line in lines if line.startswith(f"{label}:")]
        assert line.removeprefix(f"{label}:").strip()
    (reaches,) = [line for line in lines if line.startswith("Reaches:")]
    assert re.search(r"\bmeasured\b", reaches), "a number says whether it was measured"


@pytest.mark.parametrize("config", CONFIGS)
def test_the_command_of_the_header_parses(config):
    program, verb, *flags = command(config)
    assert (program, verb) == ("t5lite", "train")
    others, bindings = split_bindings(flags)
    assert others == [f"--gin_file={config}"]
    given = configuration.parse([config], bindings)
    assert {item.selector for item in given.source.bindings} >= {"t5lite.train"}


@pytest.mark.parametrize("config", CONFIGS)
def test_what_the_header_says_comes_then_is_of_its_run(config):
    then = [line.removeprefix("Then:") for line in header(config) if line.startswith("Then:")]
    text = Path(config).read_text(encoding="utf-8")
    (objective,) = re.findall(r'^include "gin/objectives/(\w+)\.gin"', text, re.MULTILINE)
    headed = {"classification", "regression", "token_labels", "spans", "contrastive"}
    assert bool(then) == (objective in headed)
    for program, verb, *words in map(shlex.split, then):
        parser = argparse.ArgumentParser()
        importlib.import_module(f"t5lite.commands.{verb}").add_arguments(parser)
        options = parser.parse_args(words)
        assert program == "t5lite"
        assert f'MODEL_DIR = "{options.model_dir}"' in text
        assert options.texts


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.light(
    "configs/quickstart.gin",
    "configs/t5_1_1_base_c4.gin",
    "configs/llama2_7b.gin",
    "configs/bert_base.gin",
    "configs/palm_540b.gin",
)
def test_the_step_of_a_config_lowers_on_shapes_alone(config, pretrained):
    lower(configuration.parse([config], pretrained.get(config, ())))


def table_of_objectives():
    """The commands of the documentation's table: a config, and another with the flags beside it."""
    found = []
    for line in TRAIN.splitlines():
        if line.startswith("| `") and "configs/" in line:
            config, *flags = re.findall(r"`([^`]+)`", line.split("|")[-2])
            found += [(config, ()), *((config, tuple(shlex.split(each))) for each in flags)]
    return found


def test_the_table_of_objectives_has_them_all():
    (table,) = re.findall(r"^\| objective .*?\n\n", TRAIN, re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))
    made = {name for name in dir(objectives) if hasattr(getattr(objectives, name), "refusals")}
    assert named == made - {"Objective", "InputsToTargets", "TokenCrossEntropy", "HeadObjective"}
    for name in named:
        (row,) = re.findall(rf"^\| `{name}`.*", table, re.MULTILINE)
        fits = ["✓" in cell for cell in row.split("|")[2:5]]
        refused = getattr(objectives, name).refusals
        topologies = ("encoder", "decoder", "encoder_decoder")
        assert fits == [topology not in refused for topology in topologies], name


@pytest.mark.parametrize(("config", "flags"), table_of_objectives(), ids=str)
@pytest.mark.light("configs/quickstart.gin")
def test_a_command_of_the_table_lowers_on_shapes_alone(config, flags, pretrained):
    others, bindings = split_bindings(flags)
    assert not others
    lower(configuration.parse([config], [*pretrained.get(config, ()), *bindings]))


@pytest.mark.parametrize(
    ("page", "config"),
    [(DATA, "configs/classify_csv.gin"), (TRAIN, "configs/quickstart.gin")],
    ids=["data", "train"],
)
def test_gin_of_the_documentation_binds_what_it_says(page, config, tmp_path):
    text = re.search(r"^```gin\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[1]
    path = tmp_path / "more.gin"
    head = "from __gin__ import dynamic_registration\nimport t5lite\n"
    path.write_text(head + text, encoding="utf-8")
    bound = configuration.parse([config, str(path)]).bindings_of(t5lite.train)
    if page is DATA:
        assert bound["data"].features["labels"] == Class("stars")
    else:
        kinds = [type(callback).__name__ for callback in bound["callbacks"]]
        assert kinds == ["HeldOut", "ReduceOnPlateau", "EarlyStopping"]


def test_commands_of_plans_and_benches_are_understood(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from tpu_plans import PLANS

    lines = [f"t5lite plan {flags} --topology={topology}" for _, topology, flags in PLANS]
    lines += re.findall(r"^t5lite (?:plan|bench) .*", SCALE, re.MULTILINE)
    assert len(lines) == len(PLANS) + 3
    for line in lines:
        _, verb, *words = shlex.split(line, comments=True)
        others, bindings = split_bindings(words)
        parser = argparse.ArgumentParser()
        parser.add_argument("--gin_file", action="append")
        importlib.import_module(f"t5lite.commands.{verb}").add_arguments(parser)
        options = parser.parse_args(others)
        bound = configuration.parse(options.gin_file, bindings).bindings_of(t5lite.train)
        layout = bound.get("layout", Layout())
        if verb == "plan" and importlib.util.find_spec("libtpu"):
            # Their devices hold whole shards of the data, or the run would be refused.
            devices = Slice.parse(options.topology, num_slices=options.num_slices).devices()
            assert process_shards(bound["data"], layout, make_mesh(layout, devices))


def lower(given):
    """Lowers the step that a configuration describes, checks what comes out; returns the state."""
    run = experiment_of(given)
    program = run.program(run.mesh())
    lowered = program.step.lower(program.state, program.batch)
    state, metrics = lowered.out_info
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, program.state)
    assert metrics["loss"].shape == ()
    return program.state


def test_the_tuning_fragment_freezes_what_its_macros_say(pretrained):
    bindings = [
        *pretrained["configs/finetune_classify.gin"],
        "TRAINED_LAYERS=(-1, None)",
        "FROZEN_PATHS=('embedding',)",
    ]
    files = ["configs/finetune_classify.gin", "gin/tuning/by_path.gin"]
    state = lower(configuration.parse(files, bindings))
    trained, frozen = named(state.params), named(state.frozen["params"])
    assert any(name.startswith("classification_head/") for name in trained)
    assert not any("embedding" in name for name in trained)
    assert any("embedding" in name for name in frozen)
    moments = named(state.opt_state)
    assert sum(leaf.size for leaf in moments.values()) < sum(leaf.size for leaf in frozen.values())


@pytest.mark.parametrize("config", CONFIGS)
def test_the_token_embedding_divides_over_a_mesh(config, pretrained):
    """Rows in multiples of 128 fill matrix units and divide over 128 devices."""
    if config == "configs/finetune_classify.gin":
        pytest.skip("the embedding is as it was trained")
    bindings = pretrained.get(config, ())
    spec = configuration.parse([config], bindings).bindings_of(t5lite.train)["model"]
    assert spec.vocab % 128 == 0


@pytest.mark.parametrize("config", CONFIGS)
def test_a_config_stands_on_few_fragments(config):
    source = read(config)
    assert len(source.includes) <= 6
    assert all(name.startswith("gin/") for name in source.includes)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_config_binds_nothing_that_it_does_not_use(config):
    check_used(configuration.parse([config]).source, t5lite.train, everywhere=True)


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_a_fragment_can_be_included(fragment, tmp_path):
    path = tmp_path / "config.gin"
    path.write_text(f"include '{fragment}'\n", encoding="utf-8")
    configuration.parse([str(path)], free_macros(read(fragment)))


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_a_fragment_binds_one_subsystem(fragment):
    source = read(fragment)
    kind = Path(fragment).parts[1]
    assert kind in SUBSYSTEMS, f"{fragment}: give {kind} a line in SUBSYSTEMS"
    own = [item for item in source.bindings if item.location.startswith(f"{fragment}:")]
    bound = {
        item.parameter if item.selector == "t5lite.train" else item.selector.split(".")[1]
        for item in own
    }
    assert bound <= SUBSYSTEMS[kind]


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_a_fragment_does_not_choose_the_model_dir(fragment):
    text = Path(fragment).read_text(encoding="utf-8")
    values = re.findall(r"^MODEL_DIR *= *(.*?) *(?:#.*)?$", text, re.MULTILINE)
    assert set(values) <= {"%gin.REQUIRED"}
