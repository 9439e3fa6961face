"""Errors that begin with a field name it, so that the command line finds its line in gin."""

import ast
import re
from pathlib import Path

import pytest

import t5lite

ROOT = Path(t5lite.__file__).parent / "data"
ERRORS = {"InputError", "NoSplit"}
FIELD = re.compile(r"[A-Za-z_.]+ ?=(?!=)|[a-z]+(_[a-z]+)+ (is|has) ")


@pytest.mark.parametrize("room", ["files", "tasks", "vocabularies"])
def test_messages_that_begin_with_a_field_name_it(room):
    unnamed = []
    for path in sorted((ROOT / room).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) in ERRORS:
                (message, *_), keywords = node.args, {keyword.arg for keyword in node.keywords}
                text = message.values[0] if isinstance(message, ast.JoinedStr) else message
                start = getattr(text, "value", "")
                if isinstance(start, str) and FIELD.match(start) and "field" not in keywords:
                    unnamed.append(f"{path.name}:{node.lineno}: {start}")
    assert not unnamed
