"""A resumed run says which of its settings have changed, and only those."""

import json

from t5lite.experiment.changes import changes, settings

OLD = """from __gin__ import dynamic_registration
import t5lite

# Macros:
# ==============================================================================
MODEL_DIR = '/tmp/here'
TRAIN_STEPS = 40

# Parameters for t5lite.models.override:
# ==============================================================================
t5lite.models.override.changes = \\
    {'*.dropout_rate': 0.1,
     'heads': [@t5lite.layers.LMHeadSpec()]}
t5lite.optimizers.SGD.learning_rate = 0.1
t5lite.train.steps = %TRAIN_STEPS
"""


RUN = {"headline": "", "parameters": [], "versions": {}}


def write(folder, text=OLD, **facts):
    (folder / "config.gin").write_text(text)
    (folder / "run.json").write_text(json.dumps(RUN | facts))


def test_values_of_several_lines_are_read_whole():
    assert settings(OLD) == {
        "TRAIN_STEPS": "40",
        "t5lite.models.override.changes": (
            "{'*.dropout_rate': 0.1, 'heads': [@t5lite.layers.LMHeadSpec()]}"
        ),
        "t5lite.optimizers.SGD.learning_rate": "0.1",
        "t5lite.train.steps": "%TRAIN_STEPS",
    }


def test_what_changed_is_said(tmp_path):
    versions = {"jax": "0.9", "numpy": "2"}
    write(tmp_path, versions=versions)
    assert changes(tmp_path, config=OLD, facts={"versions": versions}) == []
    moved = OLD.replace("/tmp/here", "/tmp/there")
    assert changes(tmp_path, config=moved, facts={"versions": versions}) == []
    # Names for the same values, and the parameters of another version, are no changes.
    same = OLD.replace("%TRAIN_STEPS", "40") + "\nt5lite.train.tokens = None\nMORE = 3"
    assert changes(tmp_path, config=same, facts={}) == []
    new = OLD.replace("= 40", "= 80").replace("SGD.learning_rate = 0.1", "Lion.b1 = 0.9")
    assert changes(tmp_path, config=new, facts={"versions": versions | {"jax": "0.10"}}) == [
        "TRAIN_STEPS: 40 → 80",
        "t5lite.optimizers.Lion is used now",
        "t5lite.optimizers.SGD is no longer used",
        "jax: 0.9 → 0.10",
    ]


def test_many_changes_are_few_lines(tmp_path):
    write(tmp_path, "\n".join(f"a.b{i} = {i}" for i in range(30)))
    lines = changes(tmp_path, config="\n".join(f"a.b{i} = 7" for i in range(30)), facts={})
    assert (len(lines), lines[-1]) == (9, "and 21 more")


def test_a_run_of_a_python_call_has_facts_alone(tmp_path):
    facts = {"steps": 4, "seed": 0, "epochs": None}
    (tmp_path / "run.json").write_text(json.dumps(RUN | facts))
    facts = {"steps": 8, "seed": 0, "epochs": None}
    assert changes(tmp_path, config=None, facts=facts) == ["steps: 4 → 8"]
