"""Every test that asks for a `spec` runs on each of the tiny ones."""

import pytest
from tiny_models import SPECS

from t5lite.models import ModelSpec


@pytest.fixture(params=SPECS)
def spec(request) -> ModelSpec:
    return SPECS[request.param]
