"""Rules of fields: the error names field, value and rule."""

import math

import numpy as np
import pytest

from t5lite.errors import InputError, check_value


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (1, "integer in [1, inf)"),
        (np.int32(3), "integer in [1, inf)"),
        (np.float32(0.5), "number in (0, 1)"),
        (0, "number in [0, 1)"),
        (1, "number in [0, 1]"),
        (None, "number in (0, inf) or None"),
        ("min", ("min", "max")),
        (False, bool),
    ],
)
def test_valid_values_pass(value, rule):
    check_value("Class.field", value, rule)


@pytest.mark.parametrize(
    ("value", "rule", "message"),
    [
        (0, "integer in [1, inf)", "0: must be a whole number of at least 1"),
        (2.0, "integer in [1, inf)", "2.0: must be a whole number of at least 1; write 2"),
        (True, "integer in [0, inf)", "True: must be a whole number of at least 0"),
        ("1", "number in [0, 1)", "'1': must be a number in [0, 1)"),
        (1, "number in [0, 1)", "1: must be a number in [0, 1)"),
        (math.inf, "number in (0, inf)", "inf: must be a number above 0"),
        (math.nan, "number in (0, inf) or None", "nan: must be a number above 0, or None"),
        (None, "number in [0, inf)", "None: must be a number of at least 0"),
        ("mean", ("min", "max"), "'mean': must be 'min' or 'max'"),
        (1, bool, "1: must be True or False"),
    ],
)
def test_invalid_values_are_named_with_their_rule(value, rule, message):
    with pytest.raises(InputError) as error:
        check_value("Class.field", value, rule)
    assert str(error.value) == f"Class.field = {message}"
    assert error.value.field == "Class.field"
