"""`t5lite generate`: arguments, files, pipes and a terminal in, a line for each answer out."""

import argparse
import contextlib
import functools
import io
import json
import math
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from small_folders import add_tokenizer, copied

import t5lite
from t5lite.commands import generate as generate_command
from t5lite.commands import infer, session
from t5lite.commands.prompts import chosen_options, texts_of
from t5lite.data.files.readers import Line
from t5lite.errors import InputError
from t5lite.inference.options import DEFAULTS, FLAGS, RULES, Options, table
from t5lite.main import main

pytest.importorskip("tokenizers")

ROOT = Path(t5lite.__file__).parents[1]
FEW = "--max_new_tokens=6"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = copied("t5_1_1", tmp_path_factory.mktemp("models") / "t5")
    return add_tokenizer(made, ends=())


@pytest.fixture(scope="module")
def loaded(folder):
    """What the command loads, once for all tests, so that they compile once."""
    return t5lite.load(folder, devices=jax.devices()[:1])


@pytest.fixture
def generate(monkeypatch, capsys, folder, loaded):
    """Runs the command; returns its exit code, its lines and what it says beside them."""
    monkeypatch.setattr("t5lite.inference.load", lambda *_, **__: loaded)

    def run(*arguments, piped=b"", stdin=None):
        monkeypatch.setattr(sys, "stdin", stdin or io.TextIOWrapper(io.BytesIO(piped)))
        code = main(["generate", f"--model_dir={folder}", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err

    return run


def one_line(texts):
    return [" ".join(text.split()) for text in texts]


# --- flags --------------------------------------------------------------------------------------


def parsed(verb, *arguments):
    parser = argparse.ArgumentParser()
    {"generate": generate_command, "infer": infer}[verb].add_arguments(parser)
    return parser.parse_args(["--model_dir=d", *arguments])


@pytest.mark.parametrize("verb", ["generate", "infer"])
def test_flags_are_the_options_table(verb):
    parser = argparse.ArgumentParser()
    {"generate": generate_command, "infer": infer}[verb].add_arguments(parser)
    actions = {action.dest: action for action in parser._actions}
    assert {*RULES} - {*actions} == {"logits_fn"}
    for name, rule in FLAGS.items():
        assert actions[name].help == rule.help
        if rule.kind in (int, float) and DEFAULTS[name] is not None:
            assert re.search(rf"\([^()]*\b{DEFAULTS[name]:g}\)$", rule.help), name
    assert chosen_options(parsed("generate")) == {}


def test_the_documentation_is_the_options_table():
    page = Path(__file__).parents[2] / "docs/reference/generation_options.md"
    assert page.read_text().endswith(f"\n\n{table()}")
    assert all(f"| `{name}` |" in table() for name in RULES)


def test_options_are_what_the_flags_say():
    given = chosen_options(
        parsed(
            "generate",
            *("--num_beams=4", "--early_stopping=never", "--length_penalty=0.6"),
            *("--stop=.", "--stop", "\n", "--banned=a", "--min_new_tokens=2", "--seed=3"),
            *("--logit_bias===-2.5", "--logit_bias=a=b=-inf"),
        )
    )
    assert Options(**given) == Options(
        num_beams=4,
        early_stopping=None,
        length_penalty=0.6,
        stop=(".", "\n"),
        banned=("a",),
        min_new_tokens=2,
        seed=3,
        logit_bias={"=": -2.5, "a=b": -math.inf},
    )


# --- texts in, lines out ------------------------------------------------------------------------


def test_arguments(generate, loaded):
    texts = ["two  cats\n", "a\tdog", "it"]
    code, lines, said = generate(*texts, FEW, "--batch_size=2")
    assert (code, lines, said) == (0, one_line(loaded.generate(texts, max_new_tokens=6)), "")
    assert len(set(lines)) == 3


def test_one_text(generate, loaded):
    code, lines, _ = generate("cats", FEW, "--temperature=0.9", "--seed=5")
    expected = loaded.generate(["cats"], max_new_tokens=6, temperature=0.9, seed=5)
    assert (code, lines) == (0, one_line(expected))


def test_one_text_in_a_terminal_is_streamed(generate, loaded, monkeypatch):
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda _: True)
    monkeypatch.setattr(loaded.__class__, "answers", None)  # is not used
    code, lines, _ = generate("cats", FEW)
    assert (code, "\n".join(lines)) == (0, "".join(loaded.stream("cats", max_new_tokens=6)))


def test_samples_are_a_line_each_and_lines_draw_by_their_number(generate, loaded, tmp_path):
    (tmp_path / "in.txt").write_text("cats\ndogs\ncats\n")
    flags = (FEW, "--temperature=1", "--num_samples=2")
    code, lines, _ = generate(f"--input_file={tmp_path}/in.txt", *flags)
    expected = loaded.generate(
        ["cats", "dogs", "cats"], max_new_tokens=6, temperature=1.0, num_samples=2
    )
    assert (code, lines) == (0, one_line(text for each in expected for text in each))
    assert lines[0] != lines[4]


def test_a_line_that_fails_stays_empty(generate, loaded, tmp_path):
    content = "déjà\r\n\ncats\u2028dogs\n<extra\n"
    (tmp_path / "in.txt").write_bytes(content.encode())
    code, lines, said = generate(f"--input_file={tmp_path}/in.txt", FEW, "--batch_size=1")
    expected = loaded.generate(["déjà", "cats\u2028dogs", "<extra"], max_new_tokens=6)
    assert code == 1
    assert lines == one_line([expected[0], "", *expected[1:]])
    assert said == "t5lite: line 2: the text is empty: give at least one token\n"


def test_a_failing_line_of_samples_keeps_their_place(generate):
    code, lines, _ = generate("", "a", FEW, "--num_beams=2", "--num_samples=2")
    assert (code, lines[:2], len(lines)) == (1, ["", ""], 4)


def test_a_pipe(generate, loaded):
    code, lines, _ = generate(FEW, piped=b"one\ntwo\n")
    assert (code, lines) == (0, one_line(loaded.generate(["one", "two"], max_new_tokens=6)))


def test_a_table(generate, loaded, tmp_path):
    rows = [{"inputs": "cats"}, {"text": "dogs"}, {"other": 1}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, lines, said = generate(f"--input_file={tmp_path}/in.jsonl", FEW)
    assert code == 1
    assert lines == [*one_line(loaded.generate(["cats", "dogs"], max_new_tokens=6)), ""]
    assert said == "t5lite: line 3: no 'inputs' or 'text'; there is 'other'\n"


def test_drafts_change_no_greedy_answer(generate):
    flags = ("cats", "dogs", FEW)
    plain = generate(*flags)
    assert generate(*flags, "--draft=prompt", "--draft_length=2") == plain


# --- templates and shots ------------------------------------------------------------------------


EXAMPLES = [
    {"question": "1 + 1", "answer": 2.0},
    {"question": "2 + 2", "answer": "4"},
    {"question": "3 + 3", "answer": "6", "more": "unused"},
    {"question": "4 + 4", "answer": "8"},
]


@pytest.fixture
def examples(tmp_path):
    path = tmp_path / "examples.jsonl"
    path.write_text("\n".join(map(json.dumps, EXAMPLES)))
    return path


def text_of(row, *arguments):
    return texts_of(parsed("generate", *map(str, arguments))).text(Line(1, 0, 0, row))


def test_a_template():
    template = "--template=question: {question} {{context}}: {context}"
    row = {"question": "who?", "context": ["a", "cat"], "x": 1}
    assert text_of(row, template) == "question: who? {context}: a cat"
    with pytest.raises(InputError, match="column 'context' is missing"):
        text_of({"question": "who?"}, template)
    with pytest.raises(InputError, match="broken"):
        texts_of(parsed("generate", template)).text(Line(1, 0, 0, None, "broken"))


def test_shots(examples):
    template = "--template=Add them.\n\n{shots}\n\nQ: {question}\nA:"
    flags = (template, f"--examples={examples}", "--shots=3")
    told = {row["question"]: f"Q: {row['question']}\nA: {row['answer']:g}" for row in EXAMPLES[:1]}
    told |= {row["question"]: f"Q: {row['question']}\nA: {row['answer']}" for row in EXAMPLES[1:]}
    for question in "2 + 2", "5 + 5":  # an example is not told of itself
        text = text_of({"question": question}, *flags)
        head, *shots, asked = text.split("\n\n")
        assert (head, asked) == ("Add them.", f"Q: {question}\nA:")
        assert len(set(shots)) == 3
        assert set(shots) <= {told[each] for each in told if each != question}
        assert text_of({"question": question}, *flags) == text
    with pytest.raises(InputError, match="column 'question' is missing"):
        text_of({"text": "a"}, *flags)


def test_a_template_of_plain_lines(generate, loaded, tmp_path):
    code, lines, _ = generate("cats", "dogs", FEW, "--template=the {text} sat")
    expected = loaded.generate(["the cats sat", "the dogs sat"], max_new_tokens=6)
    assert (code, lines) == (0, one_line(expected))


# --- a terminal session -------------------------------------------------------------------------


def converse(monkeypatch, loaded, *lines, chosen=None):
    """Types lines into a session, of which one that is an exception is raised instead."""
    typed = iter([*lines, EOFError()])

    def read(prompt):
        assert prompt == "> "
        line = next(typed)
        if not isinstance(line, str):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    engine, params = loaded.engine, loaded.decoding_params
    return session.converse(
        loaded.reader(),
        texts_of(parsed("generate")),
        {"max_new_tokens": 6} | (chosen or {}),
        generate=functools.partial(engine.outcomes, params),
        stream=functools.partial(engine.stream, params),
    )


def test_a_session(monkeypatch, capsys, loaded):
    lines = ("cats", "", "  ", KeyboardInterrupt(), "/set max_new_tokens 3", "cats", "/options")
    assert converse(monkeypatch, loaded, *lines) == 0
    printed = capsys.readouterr()
    long, short = (loaded.generate(["cats"], max_new_tokens=count)[0] for count in (6, 3))
    first, *rest = printed.out.splitlines()
    assert first == f"{loaded.folder}; /help, Ctrl-D ends"
    assert rest[:4] == [long, "", "(stopped)", short]
    assert {"* max_new_tokens = 3", "  temperature = 0.0", "  stop = ()"} <= set(rest)
    assert printed.err == ""


def test_a_session_survives_mistakes(monkeypatch, capsys, loaded):
    lines = (
        *("/set temprature 1", "/set temperature hot", "/set top_k 3", "/set", "/quit"),
        *("/set logits_fn 1", "/set banned [3, 4]", "/set banned", "/help"),
        *('/set stop ["."]', '/set stop ["a"]', "/set num_beams 2", "cats"),
    )
    assert converse(monkeypatch, loaded, *lines) == 0
    printed = capsys.readouterr()
    errors = printed.err.splitlines()
    expected = [
        "did you mean temperature",
        "temperature = 'hot': must be",
        "top_k = 3: has no effect without",
        "/set needs a name and a value",
        "unknown command '/quit'",
        "unknown option 'logits_fn'",
        "stop '.': the vocabulary cannot express it",
    ]
    assert all(part in line for part, line in zip(expected, errors, strict=True))
    answer = loaded.generate(["cats"], max_new_tokens=6, stop=["a"], num_beams=2)[0]
    assert printed.out.splitlines()[-2:] == [answer, ""]
    assert "/set NAME VALUE" in printed.out


def test_a_text_that_is_asked_again_is_drawn_anew(monkeypatch, capsys, loaded):
    assert converse(monkeypatch, loaded, "cats", "cats", chosen={"temperature": 1.0}) == 0
    _, one, other, _ = capsys.readouterr().out.splitlines()
    assert [one, other] == loaded.generate(["cats", "cats"], max_new_tokens=6, temperature=1.0)
    assert one != other


def test_an_interrupt_that_is_lost_is_found_at_the_next_piece():
    said = []

    def pieces():
        yield "one"
        with contextlib.suppress(KeyboardInterrupt):  # as libraries do
            signal.raise_signal(signal.SIGINT)
        yield "two"

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), session._interruptible() as checked:
        said.extend(checked(pieces()))
    assert said == ["one"]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
def test_a_real_terminal(folder):
    """Loads before the first prompt, streams, is stopped by Ctrl-C, goes on, ends with Ctrl-D."""
    ours, theirs = pty.openpty()
    # Ctrl-C is a signal to those whose terminal it is.
    code = (
        "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "from t5lite.main import main\n"
        f"sys.exit(main(['generate', '--model_dir={folder}', '{FEW}']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "TERM": "dumb"},
        start_new_session=True,
    )
    os.close(theirs)
    seen = ""

    def until(what):
        nonlocal seen
        deadline = time.monotonic() + 240
        while what not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([ours], [], [], 1)[0]:
                seen += os.read(ours, 4096).decode()
        before, seen = seen[: seen.index(what)], seen[seen.index(what) + len(what) :]
        return before

    def write(text):
        os.write(ours, text.encode())

    try:
        until("/help, Ctrl-D ends")
        until("> ")
        write("cats\n")
        answer = until("> ")
        assert len(answer.split("cats", 1)[1].strip()) > 1
        write("/set max_new_tokens 4000\n")
        until("> ")
        write("/set min_new_tokens 4000\n")
        until("> ")
        write("dogs\n")
        until("dogs\r\n")
        while len(seen) < 200:
            seen += os.read(ours, 4096).decode()
        write("\x03")
        until("(stopped)")
        until("> ")
        write("\x04")
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


# --- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "piped", "expected"),
    [
        (["--input_file=x", "a"], b"", "TEXT or --input_file, not both"),
        (["--input_file=x.jsonl", "a"], b"", "TEXT or --input_file, not both"),
        (["--input_file=nowhere"], b"", "--input_file=nowhere: No such file"),
        (["--input_file=nowhere.jsonl"], b"", "--input_file = 'nowhere.jsonl'"),
        (["--max_new_tokens=x", "a"], b"", "--max_new_tokens: invalid int"),
        (["--max_new_tokens=0", "a"], b"", "--max_new_tokens = 0: must be"),
        (["--temperature=-1", "a"], b"", "--temperature = -1.0: must be 0"),
        (["--temprature=1", "a"], b"", "did you mean --temperature"),
        (["--top_k=3", "a"], b"", "has no effect without"),
        (["--num_beams=2", "--temperature=1", "a"], b"", "beam search draws no samples"),
        (["--num_beams=2", "--draft=prompt", "a", "b"], b"", "beam search takes no draft"),
        (["--banned=cat", "a", "b"], b"", "only single tokens can be banned"),
        (["--logit_bias=a", "a"], b"", "--logit_bias: invalid TOKEN=NUMBER value: 'a'"),
        (["--logit_bias=a=nan", "a"], b"", "must be a mapping from tokens to numbers"),
        (["--early_stopping=maybe", "a"], b"", "invalid choice: 'maybe'"),
        (["--draft_length=3", "a"], b"", "--draft_length is for --draft"),
        (["--batch_size=0", "a", "b"], b"", "--batch_size = 0: must be"),
        (["--fill", "a"], b"", "fill needs sentinels"),
        (["--template={text", "a"], b"", "names no column"),
        (["--template={txt}", "a"], b"", "did you mean text"),
        (["--template={shots} {text}", "a"], b"", "go together"),
        (["--examples=x.jsonl", "--shots=2", "a"], b"", "go together"),
        (
            ["--template={text} {shots}", "--examples={examples}", "--shots=1", "a"],
            b"",
            "no slot for a question after",
        ),
        (["--template={shots}{text}", "--examples=x.jsonl", "--shots=1", "a"], b"", "--examples ="),
        (
            ["--template={shots}{question}", "--examples={examples}", "--shots=4", "a"],
            b"",
            "--shots = 4: must be 1..3",
        ),
        (
            ["--template={shots}{text}", "--examples={examples}", "--shots=1", "a"],
            b"",
            "unknown column 'text'",
        ),
        (["--gin_file={folder}/run.gin", "a"], b"", "reads no gin configuration"),
        ([""], b"", "the text is empty"),
        ([], b"", "standard input is empty"),
        ([], b"ab\xff", "standard input is not UTF-8: byte 0xff at offset 2"),
    ],
)
def test_mistakes(generate, monkeypatch, tmp_path, examples, flags, piped, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.gin").write_text("STEPS = 3\n")
    flags = [
        flag.replace("{examples}", str(examples)).replace("{folder}", str(tmp_path))
        for flag in flags
    ]
    code, lines, said = generate(*flags, piped=piped)
    assert (code, lines) == (2, [])
    assert expected in said
    assert len(said.splitlines()) <= 3


def test_a_model_is_needed(capsys):
    assert main(["generate", "a"]) == 2
    assert "required: --model_dir" in capsys.readouterr().err


def test_nobody_types(generate, monkeypatch):
    typing = io.StringIO()
    monkeypatch.setattr(typing, "isatty", lambda: True)
    assert "no text; give TEXT" in generate(stdin=typing)[2]


def test_no_such_folder(capsys, tmp_path):
    assert main(["generate", f"--model_dir={tmp_path}/nowhere", "a"]) == 2
    assert "there is no folder" in capsys.readouterr().err
