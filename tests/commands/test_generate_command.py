"""`t5lite generate`: arguments, files and pipes in, a line for each out."""

import io
import sys

import numpy as np
import pytest

from t5lite import interop
from t5lite.data import Bytes
from t5lite.interop import Loaded
from t5lite.main import main
from t5lite.models import Model, preset


class Echo(Loaded):
    """Answers each text with itself and the options, and waits for no compilation."""

    def __init__(self):
        object.__setattr__(self, "vocabulary", Bytes(num_sentinels=3))
        object.__setattr__(self, "model", Model(preset("t5_1_1_nano")))
        object.__setattr__(self, "asked", [])

    def _answers(self, inputs, max_new_tokens, temperature, seed, batch_size, both_ways):
        self.asked.append((len(inputs), max_new_tokens, temperature, seed, batch_size))
        yield from (np.array(ids, np.int32) for ids in inputs)


@pytest.fixture
def echo(monkeypatch):
    made = Echo()
    monkeypatch.setattr(interop, "load", lambda folder: made)
    return made


def pipe(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_arguments(echo, capsys):
    assert main(["generate", "--model_dir=d", "two  words\n", "tab\tbed", ""]) == 0
    assert capsys.readouterr().out == "two words\ntab bed\n\n"
    assert echo.asked == [(3, 64, 0.0, 0, 32)]


def test_flags(echo, capsys):
    flags = ["--max_new_tokens=5", "--temperature=0.5", "--seed=3", "--batch_size=2"]
    assert main(["generate", "text", "--model_dir", "d", *flags]) == 0
    assert echo.asked == [(1, 5, 0.5, 3, 2)]


def test_a_file_gives_a_line_for_a_line(echo, capsys, tmp_path):
    (tmp_path / "in.txt").write_bytes("déjà\r\n\nline\u2028separator\nlast".encode())
    assert main(["generate", "--model_dir=d", f"--input_file={tmp_path}/in.txt"]) == 0
    assert capsys.readouterr().out == "déjà\n\nline separator\nlast\n"


def test_a_pipe(echo, capsys, monkeypatch):
    pipe(monkeypatch, b"one\ntwo\n")
    assert main(["generate", "--model_dir=d"]) == 0
    assert capsys.readouterr().out == "one\ntwo\n"


def test_fill(echo, capsys):
    assert main(["generate", "--model_dir=d", "--fill", "a <extra_id_1>c"]) == 0
    assert capsys.readouterr().out == "a cc\n"  # the echo says that gap 1 is "c"


def test_the_flags_need_no_gin_file_and_take_none(echo, capsys, tmp_path):
    (tmp_path / "run.gin").write_text("STEPS = 3\n")
    assert main(["generate", "--model_dir=d", f"--gin_file={tmp_path}/run.gin", "a"]) == 2
    assert "reads no gin configuration" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "piped", "expected"),
    [
        (["a"], b"", "required: --model_dir"),
        (["--model_dir=d", "--input_file=x", "a"], b"", "TEXT or --input_file, not both"),
        (["--model_dir=d", "--input_file=nowhere"], b"", "--input_file=nowhere: No such file"),
        (["--model_dir=d", "--max_new_tokens=x", "a"], b"", "--max_new_tokens: invalid int"),
        (["--model_dir=d", "--max_new_tokens=0", "a"], b"", "max_new_tokens = 0: must be"),
        (["--model_dir=d", "--temperature=-1", "a"], b"", "temperature = -1.0: must be 0"),
        (["--model_dir=d", "--temprature=1", "a"], b"", "did you mean --temperature"),
        (["--model_dir=d", "<extra_id_7>"], b"", "<extra_id_7> in a text"),
        (["--model_dir=d"], b"", "standard input is empty"),
        (["--model_dir=d"], b"ab\xff", "standard input is not UTF-8: byte 0xff at offset 2"),
    ],
)
def test_mistakes(echo, capsys, monkeypatch, flags, piped, expected):
    pipe(monkeypatch, piped)
    assert main(["generate", *flags]) == 2
    printed = capsys.readouterr()
    assert expected in printed.err
    assert (printed.out, echo.asked) == ("", [])


def test_nobody_types(echo, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert main(["generate", "--model_dir=d"]) == 2
    assert "no text; give TEXT" in capsys.readouterr().err


def test_no_such_folder(capsys, tmp_path):
    assert main(["generate", f"--model_dir={tmp_path}/nowhere", "a"]) == 2
    assert "there is no folder" in capsys.readouterr().err
