"""Files of sentence-transformers beside a model: `modules.json` and the files it names."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from t5lite.data.paths import as_path, write_whole
from t5lite.errors import InputError
from t5lite.interop.embedding_defaults import EmbeddingDefaults
from t5lite.interop.huggingface.files import open_tensors, write_tensors
from t5lite.interop.huggingface.tokenizer_settings import read_json
from t5lite.interop.tensors import Arrays, Part, Source, Tensor, tensors_from, transposed
from t5lite.layers import DenseSpec, EmbeddingHeadSpec

MODULES, CONFIG = "modules.json", "config.json"
_PROMPTS = "config_sentence_transformers.json"
_TRANSFORMER = [  # by age, as their library looks for them
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]
# Ways to pool as they are called there since version 6; before, as flags.
_POOLINGS = {
    "cls": "first",
    "lasttoken": "last",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_length",
    "weightedmean": "weighted_mean",
}
# In the order in which vectors are joined.
_FLAGS = {
    "cls_token": "cls",
    "max_tokens": "max",
    "mean_tokens": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean_tokens": "weightedmean",
    "lasttoken": "lasttoken",
}
_ACTIVATIONS = {
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.SiLU": "silu",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.linear.Identity": None,
}


class Sentences(NamedTuple):
    """The content of sentence-transformers' files.

    Attributes:
      heads: the head for embeddings, if the files describe one that is known.
      defaults: how texts are embedded; None without such files.
      lowercase: whether texts are lower-cased, whatever the tokenizer does.
      dense: the folders of the head's dense layers, in order.
    """

    heads: tuple[EmbeddingHeadSpec, ...] = ()
    defaults: EmbeddingDefaults | None = None
    lowercase: bool = False
    dense: Sequence[Any] = ()


def transformer_folder(folder: Any) -> Any:
    """Returns the model's folder: the folder itself, or the first in its `modules.json`."""
    root = as_path(folder)
    if (root / CONFIG).exists() or not (root / MODULES).exists():
        return root
    modules = _modules(root)
    return root / modules[0][1] if modules and modules[0][0] == "Transformer" else root


def read_sentences(folder: Any) -> Sentences:
    """Returns the files' content, empty without `modules.json`; InputError if damaged."""
    if not (folder / MODULES).exists():
        return Sentences()
    modules, own = _modules(folder), read_json(folder / _PROMPTS)
    inner = transformer_folder(folder)
    limits = next(filter(None, (read_json(inner / name) for name in _TRANSFORMER)), {})
    most = limits.get("max_seq_length") or read_json(inner / "tokenizer_config.json").get(
        "model_max_length"
    )
    kinds = [kind for kind, _ in modules]
    refusal = _refusal(kinds, limits, own)
    heads: tuple[EmbeddingHeadSpec, ...] = ()
    dense: list[Any] = []
    includes = True
    if refusal is None:
        pooling = _config(folder / modules[1][1])
        includes = pooling.get("include_prompt", True)
        dense = [folder / path for kind, path in modules if kind == "Dense"]
        try:
            head = EmbeddingHeadSpec(
                pooling=_pooling(pooling),
                normalized=kinds[-1] == "Normalize",
                dense=tuple(map(_dense, dense)),
            )
            heads = (head,)
        except _UnknownError as error:
            refusal, dense = str(error), []
    defaults = EmbeddingDefaults(
        prompts={name: text for name, text in own.get("prompts", {}).items() if text is not None},
        default_prompt=own.get("default_prompt_name"),
        includes_prompt=includes,
        max_length=int(most) if most is not None and most < 10**9 else None,
        refusal=refusal and f"{folder} says {refusal}, which is not known here",
    )
    return Sentences(heads, defaults, bool(limits.get("do_lower_case", False)), dense)


class _UnknownError(Exception):
    """A setting that embeddings here do not support."""


def _modules(folder: Any) -> list[tuple[str, str]]:
    """Returns kind and path of each module."""
    path = folder / MODULES
    try:
        content = json.loads(path.read_bytes())
        modules = [(module["type"].rpartition(".")[2], str(module["path"])) for module in content]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged: {error!r}; copy the folder again") from error
    for _, path_inside in modules:
        if PurePosixPath(path_inside).is_absolute() or ".." in PurePosixPath(path_inside).parts:
            raise InputError(
                f"{path} names {path_inside!r}, outside its folder; copy the folder again"
            )
    return modules


def _refusal(kinds: Sequence[str], limits: Mapping[str, Any], own: Mapping[str, Any]) -> str | None:
    """Returns the unsupported part of the modules, or of the settings `own` of all; or None."""
    if own.get("truncate_dim") is not None:
        return f"truncate_dim = {own['truncate_dim']!r}"
    task = limits.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        return f"transformer_task = {task!r}"
    expected = ["Transformer", "Pooling", *["Dense"] * kinds.count("Dense")]
    expected += ["Normalize"] if "Normalize" in kinds else []
    if list(kinds) != expected:
        return f"modules {', '.join(kinds)}"
    return None


def _config(folder: Any) -> dict[str, Any]:
    if not (folder / CONFIG).exists():
        raise InputError(
            f"{folder.parent / MODULES} is damaged: {folder / CONFIG} is missing; copy the folder "
            "again"
        )
    return read_json(folder / CONFIG)


def _pooling(config: Mapping[str, Any]) -> str:
    if "pooling_mode" in config:
        modes = config["pooling_mode"]
        modes = [modes] if isinstance(modes, str) else list(modes)
    else:
        flag = "pooling_mode_"
        on = [key.removeprefix(flag) for key, on in config.items() if key.startswith(flag) and on]
        modes = sorted((_FLAGS.get(name, name) for name in on), key=[*_FLAGS.values(), *on].index)
    modes = modes or ["mean"]
    if not {*modes} <= _POOLINGS.keys():
        raise _UnknownError(f"pooling by {' and '.join(modes)}")
    return "+".join(_POOLINGS[mode] for mode in modes)


def _dense(folder: Any) -> DenseSpec:
    config = _config(folder)
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in _ACTIVATIONS:
        raise _UnknownError(f"a Dense layer with {activation}")
    for name, only in (
        ("module_input_name", "sentence_embedding"),
        ("module_output_name", "sentence_embedding"),
        ("use_residual", False),
    ):
        if config.get(name) not in (None, only):
            raise _UnknownError(f"a Dense layer with {name} = {config[name]!r}")
    if not (folder / "model.safetensors").exists():
        raise _UnknownError(
            f"a Dense layer whose weights, in {folder.name}, are not in a model.safetensors"
        )
    return DenseSpec(config["out_features"], _ACTIVATIONS[activation], config.get("bias", True))


# Tensors of the dense layers, which have files of their own.


def with_dense(source: Source, folders: Sequence[Any]) -> Source:
    """Returns the tensors of a model and of its dense layers: `dense_0/linear.weight`."""
    layers = {f"dense_{number}": open_tensors(folder) for number, folder in enumerate(folders)}
    shapes = dict(source.tensors())
    for prefix, layer in layers.items():
        shapes |= {f"{prefix}/{name}": shape for name, shape in layer.tensors().items()}

    def read(name: str) -> np.ndarray:
        prefix, _, inner = name.partition("/")
        return layers[prefix].read(inner) if prefix in layers else source.read(name)

    return Arrays(shapes, read) if layers else source


def dense_tensors(
    head: EmbeddingHeadSpec, embed: int, number: int, *, prefix: str = ""
) -> list[Tensor]:
    before = len(head.pooling.split("+")) * embed
    width = head.dense[number - 1].size if number else before
    layer, path = head.dense[number], f"embedding_head/dense_{number}"
    kernel, bias = Part(f"{path}/kernel", None, transposed), Part(f"{path}/bias")
    tensors = [
        Tensor(f"{prefix}linear.weight", (layer.size, width), (kernel,)),
        Tensor(f"{prefix}linear.bias", (layer.size,), (bias,)),
    ]
    return tensors if layer.use_bias else tensors[:1]


def all_dense_tensors(heads: Sequence[Any], embed: int) -> list[Tensor]:
    """Returns the tensors of the heads' dense layers, as `with_dense` names them."""
    return [
        tensor
        for head in heads
        if isinstance(head, EmbeddingHeadSpec)
        for number in range(len(head.dense))
        for tensor in dense_tensors(head, embed, number, prefix=f"dense_{number}/")
    ]


def write_sentences(
    folder: Path,
    head: EmbeddingHeadSpec,
    params: Any,
    *,
    embed: int,
    defaults: EmbeddingDefaults | None,
) -> None:
    """Writes a head for sentence-transformers.

    Args:
      folder: local; holds the model.
      head: without `size`, a linear layer that sentence-transformers lacks.
      params: of the whole model.
      embed: width of its hidden states.
      defaults: how texts are embedded.

    Raises: InputError for an activation that has no counterpart there.
    """
    names = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    defaults = EmbeddingDefaults() if defaults is None else defaults
    modules, contents = [("", "Transformer"), ("1_Pooling", "Pooling")], dict[str, Any]()
    width = len(head.pooling.split("+")) * embed
    for number, layer in enumerate(head.dense):
        name = f"{number + 2}_Dense"
        modules.append((name, "Dense"))
        if layer.activation not in names:
            raise InputError(
                f"EmbeddingHeadSpec.dense: activation = {layer.activation!r} has no counterpart in "
                "sentence-transformers",
                field="EmbeddingHeadSpec.dense",
            )
        own = {f"dense_{number}": params["embedding_head"][f"dense_{number}"]}
        tensors = tensors_from({"embedding_head": own}, dense_tensors(head, embed, number))
        write_tensors(folder / name, tensors)
        contents[f"{name}/{CONFIG}"] = {
            "in_features": width,
            "out_features": layer.size,
            "bias": layer.use_bias,
            "activation_function": names[layer.activation],
        }
        width = layer.size
    if head.normalized:
        modules.append((f"{len(modules)}_Normalize", "Normalize"))
    contents[f"1_Pooling/{CONFIG}"] = {
        **_pooling_fields(head, embed),
        "include_prompt": defaults.includes_prompt,
    }
    contents[MODULES] = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for at, (path, kind) in enumerate(modules)
    ]
    contents[_TRANSFORMER[0]] = {"max_seq_length": defaults.max_length, "do_lower_case": False}
    contents[_PROMPTS] = {
        "prompts": dict(defaults.prompts),
        "default_prompt_name": defaults.default_prompt,
        "similarity_fn_name": "cosine",
    }
    for name, content in contents.items():
        write_whole(folder / name, (json.dumps(content, indent=2) + "\n").encode())


def _pooling_fields(head: EmbeddingHeadSpec, embed: int) -> dict[str, Any]:
    modes = {ours: theirs for theirs, ours in _POOLINGS.items()}
    pooling = [modes[name] for name in head.pooling.split("+")]
    if sorted(pooling, key=[*_FLAGS.values()].index) != pooling:
        return {"embedding_dimension": embed, "pooling_mode": pooling}
    # As flags too, for versions before 6; of these only one can be on where order matters.
    flags = {f"pooling_mode_{flag}": mode in pooling for flag, mode in _FLAGS.items()}
    return {"word_embedding_dimension": embed, **flags}
