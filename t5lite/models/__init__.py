"""Models: an architecture is a spec, and a spec makes pure functions of parameters."""

from t5lite.models.block import Block, BlockSpec, TransformerBlockSpec
from t5lite.models.cache import Cache
from t5lite.models.differences import Difference, differences
from t5lite.models.flops import forward_flops
from t5lite.models.model import Model
from t5lite.models.override import named_spec, override, reads_folders
from t5lite.models.presets import PRESETS, preset
from t5lite.models.spec import (
    ComputeSpec,
    ModelSpec,
    StackSpec,
    load_spec,
    save_spec,
)

__all__ = [
    "PRESETS",
    "Block",
    "BlockSpec",
    "Cache",
    "ComputeSpec",
    "Difference",
    "Model",
    "ModelSpec",
    "StackSpec",
    "TransformerBlockSpec",
    "differences",
    "forward_flops",
    "load_spec",
    "named_spec",
    "override",
    "preset",
    "reads_folders",
    "save_spec",
]
