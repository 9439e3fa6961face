"""Templates: slots, braces, plain values."""

import pytest

from t5lite.data.files.templates import Template, plain
from t5lite.errors import InputError


def test_slots_take_the_rows_values():
    template = Template("question: {question} context: {the context}")
    assert template.slots == ("question", "the context")
    row = {"question": "why?", "the context": ["be", "cause", 3.0], "other": 1}
    assert template.render(row) == "question: why? context: be cause 3"


@pytest.mark.parametrize("value", ["{x}", "}}", "{{", "a{b}c"])
def test_values_are_never_templates(value):
    assert Template("<{a}>").render({"a": value}) == f"<{value}>"


def test_double_braces_are_braces():
    assert Template("{{{a}}} {{b}}").render({"a": 1}) == "{1} {b}"


@pytest.mark.parametrize("text", ["{a", "a}", "{}", "{a} {", "}{"])
def test_lonely_braces_are_refused(text):
    with pytest.raises(InputError, match="names no column"):
        Template(text)


def test_a_slot_without_a_column_names_the_nearest():
    with pytest.raises(InputError, match="unknown column 'qestion'; did you mean question"):
        Template("{qestion}").check(["question", "answer"])


@pytest.mark.parametrize("text", ["{b}", "x {a} y {b} z", "{b} {a}{b}!", "{{{b}"])
def test_a_slot_starts_at_its_value(text):
    row = {"a": "some", "b": "answer"}
    template = Template(text)
    start = template.start_of("b", row)
    assert template.render(row)[start:].startswith("answer")
    assert template.render(row).rindex("answer") == start


def test_values_are_written_plainly():
    values = ["é", None, True, 2.0, 0.1, 7, [1, [2.5, "x"]], {"a": 1}]
    assert [plain(value) for value in values] == [
        "é", "", "true", "2", "0.1", "7", "1 2.5 x", '{"a": 1}'
    ]  # fmt: skip
