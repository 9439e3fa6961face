"""How PyTorch's modules lay out the tensors of ours: linear layers, attention, norms, tables."""

import numpy as np

from t5lite.interop.placing import Layer
from t5lite.interop.tensors import Part, Tensor, View, transposed
from t5lite.layers import AttentionSpec, LayerNormSpec, MlpSpec, NormSpec


def vector(name: str, path: str, size: int, *, layer: Layer = None) -> Tensor:
    """Returns a vector that is laid out as ours."""
    return Tensor(name, (size,), (Part(path, layer),))


def linear(
    name: str, path: str, into: int, out: int, *, use_bias: bool, layer: Layer = None
) -> list[Tensor]:
    """Returns the tensors of an `nn.Linear`: a weight `[out, into]`, and a bias if there is one.

    Args:
      name: of the module.
      path: of our projection, above `kernel` and `bias`.
      into: features it reads.
      out: features it writes.
      use_bias: whether it has a bias.
      layer: see `Part`.
    """
    weight = Tensor(f"{name}.weight", (out, into), (Part(f"{path}/kernel", layer, transposed),))
    bias = vector(f"{name}.bias", f"{path}/bias", out, layer=layer)
    return [weight, bias] if use_bias else [weight]


def norm(
    name: str, path: str, spec: NormSpec, size: int, *, layer: int | None = None
) -> list[Tensor]:
    """Returns the tensors of a layer norm or an RMS norm of `size` features."""
    scale = vector(f"{name}.weight", f"{path}/scale", size, layer=layer)
    if not (isinstance(spec, LayerNormSpec) and spec.use_bias):
        return [scale]
    return [scale, vector(f"{name}.bias", f"{path}/bias", size, layer=layer)]


def attention(
    names: dict[str, str],
    path: str,
    spec: AttentionSpec,
    embed: int,
    *,
    kv_embed: int | None = None,
    layer: int | None = None,
) -> list[Tensor]:
    """Returns the tensors of attention with a linear layer for each projection.

    Args:
      names: of the modules, by "query", "key", "value" and "output".
      path: of our attention.
      spec: of it.
      embed: width of the residual stream.
      kv_embed: width of what keys and values are projected from, if not `embed`.
      layer: see `Part`.
    """
    tensors = []
    for part in ("query", "key", "value"):
        heads = spec.num_heads if part == "query" else spec.kv_heads
        into = embed if part == "query" else kv_embed or embed
        joined = heads * spec.head_dim
        kernel = Part(f"{path}/{part}/kernel", layer, split_out(heads, spec.head_dim))
        tensors.append(Tensor(f"{names[part]}.weight", (joined, into), (kernel,)))
        if spec.use_bias:
            bias = Part(f"{path}/{part}/bias", layer, split_vector(heads, spec.head_dim))
            tensors.append(Tensor(f"{names[part]}.bias", (joined,), (bias,)))
    return tensors + attention_output(names["output"], path, spec, embed, layer=layer)


def attention_output(
    name: str, path: str, spec: AttentionSpec, embed: int, *, layer: int | None = None
) -> list[Tensor]:
    """Returns the tensors of the linear layer behind attention's heads."""
    view = split_in(spec.num_heads, spec.head_dim)
    kernel = Part(f"{path}/output/kernel", layer, view)
    tensors = [Tensor(f"{name}.weight", (embed, spec.num_heads * spec.head_dim), (kernel,))]
    if spec.use_bias:
        tensors.append(vector(f"{name}.bias", f"{path}/output/bias", embed, layer=layer))
    return tensors


def mlp(
    names: dict[str, str], path: str, spec: MlpSpec, embed: int, *, layer: Layer = None
) -> list[Tensor]:
    """Returns the tensors of an MLP with a linear layer for each projection.

    Args:
      names: of the modules, by "up", "down" and, when gated, "gate".
      path: of our MLP.
      spec: of it.
      embed: width of the residual stream.
      layer: see `Part`.
    """
    tensors = []
    for part in ("gate", "up") if spec.gated else ("up",):
        sizes = (embed, spec.hidden)
        tensors += linear(
            names[part], f"{path}/{part}", *sizes, use_bias=spec.use_bias, layer=layer
        )
    down = (names["down"], f"{path}/down", spec.hidden, embed)
    return tensors + linear(*down, use_bias=spec.use_bias, layer=layer)


def table(
    name: str, path: str, rows: int, width: int, *, aliases: tuple[str, ...] = ()
) -> list[Tensor]:
    """Returns the tensor of an `nn.Embedding`, `[rows, width]`, at our `path/embedding`."""
    return [Tensor(name, (rows, width), (Part(f"{path}/embedding"),), aliases)]


def split_out(heads: int, head_dim: int) -> View:
    """Returns the view `[heads * head_dim, embed]` → `[embed, heads, head_dim]`."""

    def view(array: np.ndarray) -> np.ndarray:
        return array.reshape(heads, head_dim, array.shape[-1]).transpose(2, 0, 1)

    return view


def split_in(heads: int, head_dim: int) -> View:
    """Returns the view `[embed, heads * head_dim]` → `[heads, head_dim, embed]`."""

    def view(array: np.ndarray) -> np.ndarray:
        return array.reshape(array.shape[0], heads, head_dim).transpose(1, 2, 0)

    return view


def split_vector(heads: int, head_dim: int) -> View:
    """Returns the view `[heads * head_dim]` → `[heads, head_dim]`."""

    def view(array: np.ndarray) -> np.ndarray:
        return array.reshape(heads, head_dim)

    return view
