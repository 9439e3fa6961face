"""The command line and the configuration below it, with stand-ins for what they configure.

The stand-ins are this module's own `train` and `Optimizer`: gin files here say `import test_main`.
"""

import os
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

import t5lite
from t5lite import configuration, errors, main
from t5lite.configuration import source
from t5lite.configuration.unused import check_used
from t5lite.data.sources import NoSplit
from t5lite.errors import InputError, RunError
from t5lite.training import CheckpointError, NonFiniteLoss

ROOT = os.path.dirname(os.path.dirname(t5lite.__file__))
HEADER = "from __gin__ import dynamic_registration\nimport test_main\n"


# Of each class with a message of several lines, the last of which says what to do.
ERRORS = {
    "short": InputError("labels: 3 classes\nset num_classes to 3"),
    "long": InputError("\n".join(["no such names", *"abcdefgh", "map them, as ADVICE says"])),
    "no split": NoSplit("no split 'test'\nchoose one of train, validation"),
    "checkpoint": CheckpointError("step 5 could not be saved\nstep 4 is intact\nmake room"),
    "loss": NonFiniteLoss("step 5: loss nan\nthe update was not applied\nlower the rate"),
    "run": RunError("\n".join(["it ended", *"abcdefgh", "do this"])),
}


@dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 1e-3
    decay: float = 0.0

    def __post_init__(self):
        if not isinstance(self.learning_rate, float):
            raise InputError(
                f"learning_rate must be a float, not {self.learning_rate!r}", field="learning_rate"
            )
        if self.decay < 0:
            raise ValueError("negative decay")


class Optimiser(Optimizer):
    pass


@dataclass(frozen=True)
class Decay:
    rate: float = 0.5


@dataclass(frozen=True)
class Rows:
    files: str = "x"


@dataclass(frozen=True)
class Every:
    every: int = 1

    def __call__(self, run, state, *, step):
        return {}


@dataclass(frozen=True)
class Unlike:
    every: int = 1


def train(
    steps,
    *,
    optimizer=None,
    model_dir="runs",
    fail=None,
    decay=Decay(),
    data=None,
    callbacks=(),
):
    del decay, data, callbacks
    if fail == "rows":
        raise InputError("Rows.files = 'data/x.csv': unknown file", field="Rows.files")
    if fail in ERRORS:
        raise ERRORS[fail]
    if fail:
        raise {
            "bad": InputError("model_dir='/x' cannot be written", field="model_dir"),
            "stop": SystemExit(143),
            "bug": RuntimeError("the first line\nthe second"),
            "keys": KeyboardInterrupt(),
        }[fail]
    print(f"trained {steps} in {model_dir} with {optimizer}")
    return {"steps": steps, "optimizer": optimizer, "model_dir": model_dir}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder, and a stand-in behind `t5lite train`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    command = SimpleNamespace(
        add_arguments=lambda parser: parser.add_argument("--times", type=int, default=1),
        run=lambda options, given: [given.call(train) for _ in range(options.times)] and None,
    )
    monkeypatch.setitem(sys.modules, "t5lite.commands.train", command)
    return tmp_path


def write(folder, name, text, *, header=HEADER):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(header + text, encoding="utf-8")
    return name


def python(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": ROOT, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


# --- names and help -----------------------------------------------------------------------------


def test_import_is_light_and_names_are_listed(tmp_path):
    code = (
        "import sys, t5lite\n"
        "heavy = {'jax', 'flax', 'numpy', 'tensorflow', 'seqio', 'gin'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert {'train', 'load', 'models', 'training', '__version__'} <= set(dir(t5lite))\n"
        "assert t5lite.errors.InputError\n"
    )
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_unknown_public_name():
    with pytest.raises(AttributeError, match="'t5lite' has no attribute 'trian'"):
        t5lite.trian  # noqa: B018


def test_help_takes_less_than_a_second_and_imports_no_jax(tmp_path):
    code = (
        "import sys; from t5lite.main import main; code = main(['--help'])\n"
        "assert not {'jax', 'numpy', 'tensorflow', 'seqio'} & set(sys.modules); sys.exit(code)"
    )
    seconds = []
    for _ in range(3):  # the best of three: the machine may be busy
        start = time.perf_counter()
        done = python("-c", code, cwd=tmp_path)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    assert min(seconds) < 1
    assert all(verb in done.stdout for verb in main.COMMANDS)


@pytest.mark.parametrize("verb", main.COMMANDS)
def test_help_of_a_verb_imports_no_jax_either(verb, tmp_path):
    code = (
        "import sys; from t5lite.main import main\n"
        f"try: main([{verb!r}, '--help'])\n"
        "finally: assert not {'jax', 'numpy', 'tensorflow', 'seqio'} & set(sys.modules)"
    )
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: t5lite {verb}")


def test_version(capsys):
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == f"t5lite {t5lite.__version__}\n"


def test_help_of_a_verb_lists_its_flags_and_gins(here, capsys):
    with pytest.raises(SystemExit, match="0"):
        main.main(["train", "--help"])
    printed = capsys.readouterr().out
    assert all(flag in printed for flag in ("--times", "--gin_file", "--gin_search_paths"))


# --- what a configuration says ------------------------------------------------------------------


def test_files_includes_macros_and_flags(here, capsys):
    write(here, "parts/optimizer.gin", "test_main.Optimizer.learning_rate = %RATE\nRATE = 0.5\n")
    write(here, "run.gin", "include 'parts/optimizer.gin'\ntest_main.train.steps = %STEPS\n")
    write(here, "more.gin", "test_main.train.optimizer = @test_main.Optimizer()\nSTEPS = 3\n")
    flags = ["--gin_file=run.gin", "--gin_file", "more.gin", "--gin.RATE=0.25"]
    assert main.main(["train", *flags, "--gin.test_main.Optimizer.decay=1.0", "--times=2"]) == 0
    line = "trained 3 in runs with Optimizer(learning_rate=0.25, decay=1.0)\n"
    assert capsys.readouterr().out == 2 * line


def test_later_files_win_and_flags_win_over_all(here):
    for number in (1, 2):
        write(here, f"{number}.gin", f"test_main.train.steps = %A\nA = {number}\n")
    assert configuration.parse(["1.gin", "2.gin"]).bindings_of(train) == {"steps": 2}
    assert configuration.parse(["2.gin", "1.gin"]).bindings_of(train) == {"steps": 1}
    given = configuration.parse(["1.gin"], ["test_main.train.steps = 7"])
    assert given.bindings_of(train) == {"steps": 7}


def test_a_macro_of_a_replaced_value_is_not_missed(here):
    write(here, "run.gin", "test_main.train.steps = %STEPS\ntest_main.train.steps = 2\n")
    assert configuration.parse(["run.gin"]).bindings_of(train) == {"steps": 2}


def test_a_call_wins_over_bindings(here):
    write(here, "run.gin", "test_main.train.steps = 1\n")
    assert configuration.parse(["run.gin"]).call(train, steps=9)["steps"] == 9


def test_names_of_t5lite_may_be_short_on_the_command_line(here):
    given = configuration.parse([], ["errors.unknown.kind='verb'"])
    assert given.bindings_of(errors.unknown) == {"kind": "verb"}
    scoped = configuration.parse([], ["deep/errors.unknown.kind='verb'"])
    assert scoped.source.bindings[0].selector == "t5lite.errors.unknown"


def test_search_paths(here, capsys):
    write(here, "far/away/run.gin", "include 'part.gin'\n")
    write(here, "near/part.gin", "test_main.train.steps = 4\n")
    assert main.main(["train", "--gin_file=run.gin", "--gin_search_paths=far/away,near"]) == 0
    assert capsys.readouterr().out.startswith("trained 4")


@pytest.mark.parametrize("layout", ["wheel", "checkout"])
def test_carried_files_are_found_from_any_folder(here, monkeypatch, layout):
    monkeypatch.setattr(source, "_PACKAGE", here / "site/t5lite")
    folder = {"wheel": "site/t5lite/_", "checkout": "site/"}[layout]
    write(here, f"{folder}configs/run.gin", "include 'gin/deep/part.gin'\n")
    write(here, f"{folder}gin/deep/part.gin", "test_main.train.steps = 6\n")
    assert configuration.parse(["configs/run.gin"]).bindings_of(train) == {"steps": 6}
    write(here, "configs/run.gin", "test_main.train.steps = 7\n")  # the current folder comes first
    assert configuration.parse(["configs/run.gin"]).bindings_of(train) == {"steps": 7}


def test_modules_and_gin_files_of_the_users_own(here, capsys):
    write(here, "homemade/__init__.py", "", header="")
    write(here, "homemade/task.py", "def learning_rate():\n    return 0.125\n", header="")
    text = "import homemade.task\ntest_main.train.optimizer = @homemade.task.learning_rate()\n"
    write(here, "homemade/run.gin", text + "test_main.train.steps = %gin.REQUIRED\n")
    flags = ["--gin_file=homemade/run.gin", "--gin.test_main.train.steps=5"]
    assert main.main(["train", *flags]) == 0
    assert capsys.readouterr().out == "trained 5 in runs with 0.125\n"
    os.chdir("/")  # from elsewhere it is found as a file of a Python package
    sys.path.append(str(here))
    assert main.main(["train", *flags]) == 0


def test_operative_config_round_trips(here):
    write(here, "run.gin", "test_main.train.optimizer = @test_main.Optimizer()\nN = 3\n")
    given = configuration.parse(["run.gin"], ["test_main.train.steps=%N"])
    first = given.call(train)
    (here / "operative.gin").write_text(given.operative_config())
    again = configuration.parse(["operative.gin"])
    assert again.call(train) == first
    assert again.operative_config() == given.operative_config()


def test_split_bindings():
    others, bindings = main.split_bindings(["--a=1", "--gin.X.y=@f()", "--gin.S='a=b'", "b"])
    assert others == ["--a=1", "b"]
    assert bindings == ["X.y=@f()", "S='a=b'"]


def test_a_file_may_replace_what_another_binds_for(here):
    write(here, "base.gin", RUN + "test_main.Optimizer.decay = %RATE\nRATE = 2.0\n")
    text = "include 'base.gin'\nimport builtins\ntest_main.train.optimizer = @builtins.dict()\n"
    write(here, "over.gin", text)
    assert configuration.parse(["over.gin"]).bindings_of(train)["optimizer"] == {}
    write(here, "beside.gin", "import builtins\ntest_main.train.optimizer = @builtins.dict()\n")
    given = configuration.parse(["base.gin", "beside.gin"], ["STEPS=4"])
    assert given.bindings_of(train) == {"steps": 4, "optimizer": {}}
    with pytest.raises(InputError, match=r"--gin.RATE=3.0: RATE has no effect"):
        configuration.parse(["over.gin"], ["RATE=3.0"]).bindings_of(train)


def test_scopes_count_where_something_is_called_in_them(here):
    text = "test_main.train.steps = 1\ntest_main.train.optimizer = @{}test_main.Optimizer()\n"
    bound = "test_main.Optimizer.decay = 1.0\nslow/test_main.Optimizer.learning_rate = 0.5\n"
    write(here, "run.gin", text.format("slow/") + bound)
    assert configuration.parse(["run.gin"]).bindings_of(train)["optimizer"] == Optimizer(0.5, 1.0)
    write(here, "run.gin", text.format("") + bound)
    with pytest.raises(InputError, match=r"run.gin:6: slow/.* nothing is called in the scope slow"):
        configuration.parse(["run.gin"]).bindings_of(train)


def test_what_a_macro_refers_to_is_called_in_its_scope(here):
    """As the operative configuration of a run says it, `MODEL_DIR/config.gin`."""
    text = "test_main.train.steps = 1\ntest_main.train.optimizer = %OPTIMIZER\n"
    text += "OPTIMIZER = @test_main.Optimizer()\nOPTIMIZER/test_main.Optimizer.decay = 1.0\n"
    write(here, "config.gin", text)
    found = configuration.parse(["config.gin"]).bindings_of(train)["optimizer"]
    assert found == Optimizer(decay=1.0)


def test_files_that_t5lite_carries_may_be_overridden(here, monkeypatch):
    monkeypatch.setattr(source, "_PACKAGE", here / "site/t5lite")
    carried = RUN + "test_main.Optimizer.decay = %DECAY\nDECAY = 1.0\nUNUSED = 1\n"
    write(here, "site/configs/run.gin", carried)
    flags = ["test_main.train.optimizer=None"]
    given = configuration.parse(["configs/run.gin"], flags)
    assert given.bindings_of(train) == {"steps": 3, "optimizer": None}
    with pytest.raises(InputError, match=r"run.gin:8: UNUSED has no effect"):
        check_used(given.source, train, everywhere=True)
    with pytest.raises(InputError, match=r"DECAY=2.0: DECAY has no effect"):
        configuration.parse(["configs/run.gin"], [*flags, "DECAY=2.0"]).bindings_of(train)


# --- what people get wrong ----------------------------------------------------------------------

RUN = (
    "STEPS = 3\n"
    "test_main.train.steps = %STEPS\n"
    "test_main.train.optimizer = @test_main.Optimizer()\n"
)


@pytest.mark.parametrize(
    ("text", "flags", "expected"),
    [
        (
            "test_main.train.stepz = 3",
            [],
            ["run.gin:6: unknown test_main.train parameter", "'stepz'", "steps?"],
        ),
        (
            "test_main.trian.steps = 3",
            [],
            ["run.gin:6: unknown test_main name", "'trian'", "train?"],
        ),
        ("test_mian.train.steps = 3", [], ["run.gin:6: unknown import 'test_mian'", "test_main?"]),
        ("errors.unknown.kind = 'x'", [], ["run.gin:6: errors", "write t5lite.errors"]),
        (
            "test_main.train.optimizer = @test_main.Optimzer()",
            [],
            ["run.gin:6", "did you mean Optimizer"],
        ),
        ("test_main.train.steps = %STEP", [], ["run.gin:6: unknown macro 'STEP'", "STEPS?"]),
        ("test_main.train.steps = [\n1,\n", [], ["run.gin:6: not gin", "steps = ["]),
        ("test_main.train.steps = ", [], ["run.gin:6: not gin: Unable to parse value"]),
        ("test_main.train.model_dir = /tmp/x", [], ["run.gin:6", "quotes", "model_dir = '/tmp/x'"]),
        ("include 'run2.gin'", [], ["run.gin:6: unknown file 'run2.gin'; did you mean run.gin"]),
        ("include 'run.gin'", [], ["run.gin:6: run.gin includes itself"]),
        ("import nowhere_at_all", [], ["run.gin:6", "No module named 'nowhere_at_all'"]),
        ("MUST = %gin.REQUIRED", [], ["run.gin:6: MUST has no value", "--gin.MUST="]),
        (
            "test_main.train.model_dir = %gin.REQUIRED",
            [],
            ["run.gin:6: test_main.train.model_dir has no"],
        ),
        ("test_main.Optimizer.learning_rate = 3", [], ["run.gin:6: learning_rate must be a float"]),
        ("test_main.Optimizer.decay = '3'", [], ["run.gin:6", "Optimizer refused", "'str'"]),
        ("test_main.Optimizer.decay = -1.0", [], ["run.gin:6", "Optimizer refused", "negative"]),
        (
            "test_main.train.fail = 'bad'\ntest_main.train.model_dir = '/x'",
            [],
            ["run.gin:7: model"],
        ),
        (
            "STEPZ = 3",
            [],
            ["run.gin:6: STEPZ has no effect: no value in use refers to %STEPZ", "STEPS?"],
        ),
        (
            "test_main.Decay.rate = 3",
            [],
            ["run.gin:6: test_main.Decay.rate has no effect", "train.decay = @test_main.Decay()"],
        ),
        (
            "test_main.Optimiser.learning_rate = 3.0",
            [],
            ["run.gin:6: test_main.Optimiser.learning_rate has no effect", "Optimizer?"],
        ),
        ("", ["--gin.test_main.Decay.rate=3"], ["--gin.test_main.Decay.rate=3: ", "no effect"]),
        (
            "",
            ["--gin.Checkpoints.keep=3"],
            ["--gin.Checkpoints.keep=3: Checkpoints is not imported; write t5lite.training.Check"],
        ),
        (
            "test_main.Every.every = 3",
            [],
            ["run.gin:6: ", "add @test_main.Every() to test_main.train.callbacks, or leave it out"],
        ),
        (
            "test_main.Unlike.every = 3",
            [],
            ["run.gin:6: ", "refer to @test_main.Unlike() where it belongs, or leave it out"],
        ),
        (
            "FILES = 'data/x.csv'\ntest_main.train.data = @test_main.Rows()\n"
            "test_main.Rows.files = %FILES\ntest_main.train.fail = 'rows'",
            [],
            ["run.gin:6: Rows.files = 'data/x.csv': unknown file"],
        ),
        (
            "test_main.train.data = @test_main.Rows()\ntest_main.train.fail = 'rows'",
            [],
            ["run.gin:6: Rows.files = 'data/x.csv': unknown file"],
        ),
        ("", ["--gin.STEP=3"], ["--gin.STEP=3: unknown macro 'STEP'", "STEPS?"]),
        ("", ["--gin.test_main.train.stepz=3"], ["--gin.test_main.train.stepz=3:", "steps?"]),
        ("", ["--gin.errors.unknwon.kind=3"], ["--gin.errors.unknwon.kind=3:", "unknown?"]),
        ("", ["--gin.STEPS=abc"], ["--gin.STEPS=abc: not gin", """--gin.STEPS="'abc'\""""]),
        ("", ["--gin.STEPS=%STEPZ"], ["--gin.STEPS=%STEPZ: unknown macro 'STEPZ'", "STEPS?"]),
        ("", ["--gin.STEPS"], ["--gin.STEPS has no value"]),
        ("", ["--gin_file=rum.gin"], ["unknown file 'rum.gin'", "run.gin?"]),
        ("", ["--tims=3"], ["unknown argument '--tims'", "--times?"]),
        ("", ["--times=x"], ["--times: invalid int value: 'x'", "t5lite train --help"]),
    ],
)
def test_a_mistake_costs_a_few_lines(here, capsys, text, flags, expected):
    write(here, "run.gin", RUN + text + "\n")
    code = main.main(["train", "--gin_file=run.gin", *flags])
    printed = capsys.readouterr().err
    assert code == 2, printed
    assert all(part in printed for part in expected), printed
    assert printed.startswith("t5lite: ")
    assert len(printed.splitlines()) <= 5
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("said", "field", "typed"),
    [
        ("max_new_tokens = 0: must be at least 1", "max_new_tokens", "--max_new_tokens = 0: must"),
        ("prompt = 'x': unknown", "prompt", "--prompt = 'x': unknown"),
        ("prompts are short", "prompt", "prompts are short"),
        ("prompt = 'x': unknown", None, "prompt = 'x': unknown"),
        ("times = 3: unknown", "times", "times = 3: unknown"),
    ],
)
def test_errors_name_options_as_flags(here, capsys, monkeypatch, said, field, typed):
    def add(parser):
        parser.add_argument("--max_new_tokens")
        parser.add_argument("--truncate", action="store_true")
        parser.add_argument("--prompt")

    def run(options, given):
        raise InputError(f"{said}, or set {errors.option('truncate', True)}", field=field)

    command = SimpleNamespace(add_arguments=add, run=run)
    monkeypatch.setitem(sys.modules, "t5lite.commands.train", command)
    assert main.main(["train"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"t5lite: {typed}")
    assert printed.endswith(", or set --truncate\n")
    assert errors.option("truncate", True) == "truncate=True"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "unknown verb 'trian'; did you mean train"),
        (["--gin_file=run.gin", "train"], "the verb comes first: t5lite train|evaluate"),
        (["train"], "nothing is configured for train; name a file, such as --gin_file="),
        (["train", "--gin_file=old.gin"], "old.gin:1: No configurable matching 'nobody'"),
        (["train", "--gin_file=half.gin"], "train needs 'steps', which no file or flag binds"),
        (["train", "--gin_file=latin.gin"], "cannot read latin.gin: 'utf-8' codec"),
        (["train", "--gin_file=broken.gin"], "broken.py:1: "),
    ],
)
def test_other_mistakes(here, capsys, arguments, expected):
    write(here, "old.gin", "nobody.steps = 3\n", header="")
    write(here, "half.gin", "test_main.train.model_dir = 'x'\n")
    write(here, "broken.py", "def (\n", header="")
    write(here, "broken.gin", "import broken\n")
    (here / "latin.gin").write_bytes("# Gr\u00fc\u00dfe\n".encode("latin-1"))
    assert main.main(arguments) == 2
    printed = capsys.readouterr().err
    assert expected in printed
    assert len(printed.splitlines()) <= 5


def test_a_failure_is_one_line_and_keeps_its_traceback(here, capsys):
    write(here, "run.gin", "test_main.train.steps = 1\ntest_main.train.fail = 'bug'\n")
    assert main.main(["train", "--gin_file=run.gin"]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == "t5lite: failed: RuntimeError: the first line"
    (kept,) = here.glob("t5lite-*.txt")
    assert str(kept) in second
    assert "the second" in kept.read_text()


@pytest.mark.parametrize("kind", ERRORS)
def test_the_advice_of_an_error_is_shown(here, capsys, kind):
    write(here, "run.gin", f"test_main.train.steps = 1\ntest_main.train.fail = {kind!r}\n")
    error = ERRORS[kind]
    assert main.main(["train", "--gin_file=run.gin"]) == (2 if isinstance(error, InputError) else 1)
    printed = capsys.readouterr().err.splitlines()
    first, *_, advice = str(error).splitlines()
    assert printed[0].endswith(first)
    assert any(advice in line for line in printed)
    assert "In call to" not in "".join(printed)
    assert len(printed) <= 5


@pytest.mark.parametrize(("fail", "code"), [("'bug'", 1), ("'bad'", 2), ("3", 1)])
def test_debug_prints_the_traceback(here, capsys, fail, code):
    write(here, "run.gin", f"test_main.train.steps = 1\ntest_main.train.fail = {fail}\n")
    assert main.main(["train", "--debug", "--gin_file=run.gin"]) == code
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_interrupts_and_exits_keep_their_codes(here, capsys):
    write(here, "run.gin", "test_main.train.steps = 1\n")
    flags = ["train", "--gin_file=run.gin"]
    assert main.main([*flags, "--gin.test_main.train.fail='keys'"]) == 130
    assert capsys.readouterr().err == "t5lite: interrupted\n"
    with pytest.raises(SystemExit, match="143"):
        main.main([*flags, "--gin.test_main.train.fail='stop'"])


def test_a_bug_in_an_imported_module_is_a_failure_not_bad_input(here, capsys):
    write(here, "buggy.py", "1 / 0\n", header="")
    write(here, "run.gin", "import buggy\n")
    assert main.main(["train", "--gin_file=run.gin"]) == 1
    assert "ZeroDivisionError: division by zero" in capsys.readouterr().err


@pytest.mark.parametrize("shadowed", [False, True])
def test_gin_is_missing(tmp_path, shadowed):
    if shadowed:
        (tmp_path / "gin").mkdir()
    code = "import t5lite.commands, types, sys; from t5lite.main import main\n"
    code += "command = types.SimpleNamespace(add_arguments=lambda parser: None)\n"
    code += "sys.modules['t5lite.commands.train'] = command\n"
    # -S leaves out the installed packages.
    done = python(
        "-S",
        "-c",
        f"{code}sys.exit(main(['train']))",
        cwd=tmp_path,
        PYTHONPATH=f"{tmp_path}:{ROOT}",
    )
    assert done.returncode == 2, done.stderr
    assert "the gin-config library is missing" in done.stderr
    assert "pip install gin-config" in done.stderr
    assert (f"finds {tmp_path}/gin instead" in done.stderr) == shadowed


def test_warnings_are_notes_without_a_source_line(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with main._quiet():
            warnings.warn("num_beams is ignored", stacklevel=1)
    assert capsys.readouterr().err == "t5lite: note: num_beams is ignored\n"


def test_a_macro_that_a_carried_file_asks_for_has_no_value_yet(here, capsys, monkeypatch):
    monkeypatch.setattr(source, "_PACKAGE", here / "site/t5lite")
    write(here, "site/gin/run.gin", RUN + "test_main.train.model_dir = %MODEL_DIR\n")
    write(here, "mine.gin", "include 'gin/run.gin'\n")
    assert main.main(["train", "--gin_file=mine.gin"]) == 2
    assert "MODEL_DIR has no value yet; set MODEL_DIR = ... in a file, or add --gin.MODEL_DIR" in (
        capsys.readouterr().err
    )
    write(here, "mine.gin", "include 'gin/run.gin'\nMODELDIR = 'x'\n")
    assert main.main(["train", "--gin_file=mine.gin"]) == 2
    assert (
        "mine.gin:4: unknown macro 'MODELDIR'; did you mean MODEL_DIR?" in capsys.readouterr().err
    )
