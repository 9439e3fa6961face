"""Rotary positions in configs: `rope_theta` and `rope_scaling`, or `rope_parameters`."""

import math
from collections.abc import Mapping
from typing import Any

from t5lite.errors import InputError
from t5lite.interop.huggingface.families.family import Config, unsupported
from t5lite.layers import (
    LinearScalingSpec,
    Llama3ScalingSpec,
    RotaryScalingSpec,
    RotarySpec,
    YarnScalingSpec,
)

KINDS = ("default", "linear", "llama3", "yarn")


def rotary_spec(config: Config, *, theta: float = 10_000.0, fraction: float = 1.0) -> RotarySpec:
    """Returns the rotary positions of a config.

    Args:
      config: as transformers 4 writes it (`rope_theta`, `partial_rotary_factor`, `rope_scaling` or
        null) or as 5 does (`rope_parameters`). `max_position_embeddings` (the class's default, if
        the file leaves it out) stands in for the length in pre-training where a scaling does not
        say it.
      theta: where it has none.
      fraction: of the features that are rotated, where it has none.

    Raises:
      InputError: for a scaling that is none of `KINDS`, or lacks a number.
    """
    field = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    parameters = config.get(field) or {}
    return RotarySpec(
        float(parameters.get("rope_theta") or config.get("rope_theta") or theta),
        _first(parameters, config, "partial_rotary_factor", fraction),
        _scaling(parameters, config, field),
    )


def rope_config(spec: RotarySpec | None) -> dict[str, Any]:
    """Returns the fields of a config for rotary positions.

    Returns:
      `rope_theta` and `rope_scaling`, which transformers 4 and 5 read; for llama3 and yarn
      `max_position_embeddings` too, which has to be beyond the length of pre-training; and
      `partial_rotary_factor` if not all features are rotated. Nothing for None.
    """
    if spec is None:
        return {}
    fields = {"rope_theta": spec.theta, "rope_scaling": _scaling_config(spec.scaling)}
    if isinstance(spec.scaling, Llama3ScalingSpec | YarnScalingSpec):
        length = math.ceil(spec.scaling.original_length * spec.scaling.factor)
        fields["max_position_embeddings"] = length
    if spec.fraction != 1.0:
        fields["partial_rotary_factor"] = spec.fraction
    return fields


def _scaling(parameters: Mapping[str, Any], config: Config, field: str) -> RotaryScalingSpec | None:
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind not in KINDS:
        raise unsupported(f"{field}: rope_type", kind, KINDS)
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScalingSpec(_number(parameters, "factor", field))
    original = config.get("original_max_position_embeddings") or parameters.get(
        "original_max_position_embeddings", config.get("max_position_embeddings")
    )
    if original is None:
        raise InputError(f"{field} lacks original_max_position_embeddings")
    if kind == "llama3":
        return Llama3ScalingSpec(
            _number(parameters, "factor", field),
            _number(parameters, "low_freq_factor", field),
            _number(parameters, "high_freq_factor", field),
            original,
        )
    if parameters.get("factor") is None and "max_position_embeddings" in config:
        parameters = {**parameters, "factor": config["max_position_embeddings"] / original}
    return YarnScalingSpec(
        _number(parameters, "factor", field),
        original,
        float(parameters.get("beta_fast") or 32.0),
        float(parameters.get("beta_slow") or 1.0),
        _yarn_attention_factor(parameters),
        parameters.get("truncate", True),
    )


def _yarn_attention_factor(parameters: Mapping[str, Any]) -> float | None:
    """Returns the factor if it is not the paper's; `mscale` and `mscale_all_dim` are DeepSeek's."""
    if parameters.get("attention_factor") is not None:
        return float(parameters["attention_factor"])
    over, under = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if not (over and under):
        return None
    stretch = 0.1 * math.log(max(parameters["factor"], 1.0))
    return (over * stretch + 1.0) / (under * stretch + 1.0)


def _scaling_config(scaling: RotaryScalingSpec | None) -> dict[str, Any] | None:
    match scaling:
        case LinearScalingSpec():
            return {"rope_type": "linear", "factor": scaling.factor}
        case Llama3ScalingSpec():
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_frequency_factor,
                "high_freq_factor": scaling.high_frequency_factor,
                "original_max_position_embeddings": scaling.original_length,
            }
        case YarnScalingSpec():
            fields = {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "original_max_position_embeddings": scaling.original_length,
                "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow,
            }
            if scaling.attention_factor is not None:
                fields["attention_factor"] = scaling.attention_factor
            if not scaling.truncate:
                fields["truncate"] = False
            return fields
    return None


def _first(parameters: Mapping[str, Any], config: Config, name: str, default: float) -> float:
    for fields in (parameters, config):
        if fields.get(name) is not None:
            return float(fields[name])
    return default


def _number(parameters: Mapping[str, Any], name: str, field: str) -> float:
    value = parameters.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{field}: {name} must be a number, not {value!r}", field=field)
    return float(value)
