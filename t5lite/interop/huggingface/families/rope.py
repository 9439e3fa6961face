"""Rotary positions in configs: `rope_theta` and `rope_scaling`, or `rope_parameters`."""

import math
from collections.abc import Mapping
from typing import Any

from t5lite.errors import InputError
from t5lite.interop.huggingface.families.fields import Config, unsupported
from t5lite.layers import (
    LinearScalingSpec,
    Llama3ScalingSpec,
    RotaryScalingSpec,
    RotarySpec,
    YarnScalingSpec,
)

# Tensors that older versions saved.
FREQUENCIES = r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
_LENGTH = "original_max_position_embeddings"
# By rope_type: our spec, and its fields by the config's names, those without a default first.
_SCALINGS: dict[str, tuple[type[RotaryScalingSpec], dict[str, str]]] = {
    "linear": (LinearScalingSpec, {"factor": "factor"}),
    "llama3": (
        Llama3ScalingSpec,
        {
            "factor": "factor",
            "low_freq_factor": "low_frequency_factor",
            "high_freq_factor": "high_frequency_factor",
            _LENGTH: "original_length",
        },
    ),
    "yarn": (
        YarnScalingSpec,
        {
            "factor": "factor",
            _LENGTH: "original_length",
            "beta_fast": "beta_fast",
            "beta_slow": "beta_slow",
            "attention_factor": "attention_factor",
            "truncate": "truncate",
        },
    ),
}
_OPTIONAL = ("beta_fast", "beta_slow", "attention_factor", "truncate")
KINDS = ("default", *_SCALINGS)


def rotary_spec(config: Config, *, theta: float = 10_000.0, fraction: float = 1.0) -> RotarySpec:
    """Returns the rotary positions of a config.

    Args:
      config: as transformers 4 writes it (`rope_theta`, `partial_rotary_factor`, `rope_scaling` or
        null) or as 5 does (`rope_parameters`). `max_position_embeddings` (or the class's default)
        replaces a missing length of pre-training in a scaling.
      theta: default.
      fraction: default share of the features that are rotated.

    Raises: InputError for a scaling outside `KINDS`, or without a number.
    """
    field = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    parameters = config.get(field) or {}
    if not isinstance(parameters, Mapping):
        raise InputError(f"{field} = {parameters!r}: must be an object", field=field)

    def value(name: str, default: float) -> float:
        for fields, prefix in ((parameters, f"{field}: "), (config, "")):
            if fields.get(name) is not None:
                return _number(fields[name], prefix + name)
        return default

    return RotarySpec(
        value("rope_theta", theta),
        value("partial_rotary_factor", fraction),
        _scaling(parameters, config, field),
    )


def rope_config(spec: RotarySpec | None) -> dict[str, Any]:
    """Returns the config's fields for rotary positions; {} for None.

    They are `rope_theta` and `rope_scaling`, which transformers 4 and 5 read; for llama3 and yarn
    `max_position_embeddings`, which has to exceed the length of pre-training; and
    `partial_rotary_factor` if not all features are rotated.
    """
    if spec is None:
        return {}
    fields: dict[str, Any] = {"rope_theta": spec.theta, "rope_scaling": None}
    for kind, (spec_class, names) in _SCALINGS.items():
        if isinstance(spec.scaling, spec_class):
            values = {name: getattr(spec.scaling, ours) for name, ours in names.items()}
            # Missing ones are the class's defaults.
            absent = {"attention_factor": None, "truncate": True}
            values = {name: v for name, v in values.items() if v != absent.get(name, ...)}
            fields["rope_scaling"] = {"rope_type": kind, **values}
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
    spec_class, names = _SCALINGS[kind]
    values = {name: value for name, value in parameters.items() if value is not None}
    if _LENGTH in names:
        lengths = (config.get(_LENGTH), values.get(_LENGTH), config.get("max_position_embeddings"))
        values[_LENGTH] = next((length for length in lengths if length), None)
    if kind == "yarn":
        if "factor" not in values and "max_position_embeddings" in config and values[_LENGTH]:
            values["factor"] = config["max_position_embeddings"] / values[_LENGTH]
        if (factor := _mscale_factor(values)) is not None:
            values.setdefault("attention_factor", factor)
    arguments = {}
    for name, ours in names.items():
        if name not in _OPTIONAL or name in values:
            value = values.get(name)
            exact = name in (_LENGTH, "truncate")
            arguments[ours] = value if exact else _number(value, f"{field}: {name}")
    if _LENGTH in names and not isinstance(values[_LENGTH], int):
        raise InputError(f"{field}: {_LENGTH} must be an integer, not {values[_LENGTH]!r}")
    return spec_class(**arguments)


def _mscale_factor(parameters: Mapping[str, Any]) -> float | None:
    """Returns the attention factor of DeepSeek's `mscale` and `mscale_all_dim`."""
    over, under = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if not (over and under):
        return None
    stretch = 0.1 * math.log(max(parameters["factor"], 1.0))
    return (over * stretch + 1.0) / (under * stretch + 1.0)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{name} must be a number, not {value!r}", field=name.partition(":")[0])
    return float(value)
