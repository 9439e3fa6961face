"""The tensors of PyTorch's modules: linear layers, attention, norms, tables, stacks of layers."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from t5lite.interop.huggingface.families.fields import Unsupported, expect
from t5lite.interop.placing import Layer
from t5lite.interop.tensors import Part, Tensor, View, transposed, whole
from t5lite.layers import AttentionSpec, LayerNormSpec, LMHeadSpec, MlpSpec, NormSpec
from t5lite.models import ModelSpec, StackSpec


def vector(name: str, path: str, size: int, *, layer: Layer = None) -> Tensor:
    """Returns a vector that is laid out as ours."""
    return Tensor(name, (size,), (Part(path, layer),))


def linear(
    name: str,
    path: str,
    into: int,
    out: int,
    *,
    use_bias: bool,
    layer: Layer = None,
    kernel: View = transposed,
    bias: View = whole,
) -> list[Tensor]:
    """Returns the tensors of an `nn.Linear`: a weight `[out, into]`, and a bias if there is one.

    Args:
      name: of the module.
      path: of our projection, above `kernel` and `bias`.
      into: features it reads.
      out: features it writes.
      use_bias: whether it has a bias.
      layer, kernel, bias: see `Part`.
    """
    weight = Tensor(f"{name}.weight", (out, into), (Part(f"{path}/kernel", layer, kernel),))
    if not use_bias:
        return [weight]
    return [weight, Tensor(f"{name}.bias", (out,), (Part(f"{path}/bias", layer, bias),))]


def norm(
    name: str, path: str, spec: NormSpec, size: int, *, layer: int | None = None
) -> list[Tensor]:
    """Returns the tensors of a layer norm or an RMS norm of `size` features."""
    scale = vector(f"{name}.weight", f"{path}/scale", size, layer=layer)
    if not (isinstance(spec, LayerNormSpec) and spec.use_bias):
        return [scale]
    return [scale, vector(f"{name}.bias", f"{path}/bias", size, layer=layer)]


def attention(
    names: Mapping[str, str],
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
    result = []
    for part in ("query", "key", "value"):
        heads = spec.num_heads if part == "query" else spec.kv_heads
        result += linear(
            names[part],
            f"{path}/{part}",
            embed if part == "query" else kv_embed or embed,
            heads * spec.head_dim,
            use_bias=spec.use_bias,
            layer=layer,
            kernel=split_out(heads, spec.head_dim),
            bias=split_vector(heads, spec.head_dim),
        )
    return result + attention_output(names["output"], path, spec, embed, layer=layer)


def attention_output(
    name: str, path: str, spec: AttentionSpec, embed: int, *, layer: int | None = None
) -> list[Tensor]:
    """Returns the tensors of attention's output projection."""
    heads, head_dim = spec.num_heads, spec.head_dim
    sizes, kernel = (heads * head_dim, embed), split_in(heads, head_dim)
    return linear(
        name, f"{path}/output", *sizes, use_bias=spec.use_bias, layer=layer, kernel=kernel
    )


def mlp(
    names: Mapping[str, str], path: str, spec: Any, embed: int, *, layer: Layer = None
) -> list[Tensor]:
    """Returns the tensors of an MLP with a linear layer for each projection.

    Args:
      names: of the modules, by "up", "down" and, when gated, "gate".
      path: of our MLP.
      spec: of it; `Unsupported` unless it is an MlpSpec, gated only with a name for "gate".
      embed: width of the residual stream.
      layer: see `Part`.
    """
    tensors, spec = list[Tensor](), expect(spec, MlpSpec, "mlp")
    if spec.gated and "gate" not in names:
        raise Unsupported("mlp.gated", True)
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


def fused_attention(
    names: Mapping[str, str],
    path: str,
    spec: AttentionSpec,
    embed: int,
    *,
    by_head: bool = False,
    layer: int | None = None,
) -> list[Tensor]:
    """Returns the tensors of attention whose queries, keys and values are one linear layer.

    Args:
      names: of the modules, "fused" and "output".
      path, spec, embed, layer: see `attention`.
      by_head: whether each head's query, key and value follow each other, rather than all queries,
        all keys and all values.
    """
    sizes = (spec.num_heads, 3, spec.head_dim) if by_head else (3, spec.num_heads, spec.head_dim)

    def third(number: int) -> View:
        # [3 * heads * head_dim, embed] → [embed, heads, head_dim], or the same without `embed`.
        def view(array: np.ndarray) -> np.ndarray:
            split = array.reshape(*sizes, *array.shape[1:])
            split = split[:, number] if by_head else split[number]
            return split if array.ndim == 1 else split.transpose(2, 0, 1)

        return view

    def parts(name: str) -> tuple[Part, ...]:
        projections = enumerate(("query", "key", "value"))
        return tuple(Part(f"{path}/{part}/{name}", layer, third(n)) for n, part in projections)

    rows = 3 * spec.num_heads * spec.head_dim
    result = [Tensor(f"{names['fused']}.weight", (rows, embed), parts("kernel"))]
    if spec.use_bias:
        result.append(Tensor(f"{names['fused']}.bias", (rows,), parts("bias")))
    return result + attention_output(names["output"], path, spec, embed, layer=layer)


def stack_tensors(
    stack: StackSpec,
    side: str,
    embed: int,
    layer_name: Callable[[int], str],
    names: Mapping[str, Any],
    *,
    attention: Callable[..., list[Tensor]] = attention,
    mlp: Callable[..., list[Tensor]] = mlp,
    kv_embed: int | None = None,
    final_norm: str = "",
) -> list[Tensor]:
    """Returns the tensors of a stack's layers and, where it has a name, of its last norm.

    Args:
      stack: the encoder or decoder.
      side: which of the two, "encoder" or "decoder".
      embed: width of its residual stream.
      layer_name: the name of a layer by its number.
      names: of a layer's modules, by ours: norms by one name, `attention`, `cross_attention` and
        `mlp` as the functions below take them.
      attention: makes the tensors of attention; see `attention` above.
      mlp: makes those of an MLP; see `mlp` above.
      kv_embed: width of what cross-attention reads, if not `embed`.
      final_norm: the name of the norm after the last layer.
    """
    result: list[Tensor] = []
    num_layers = len(stack.blocks) if stack.shared_layers else stack.num_layers
    for layer, block in enumerate(stack.every_block[:num_layers]):
        place, index = stack.place(layer)
        for part, inner in names.items():
            prefix, path = f"{layer_name(layer)}.", f"{side}/{place}/{part}"
            name: Any = (
                prefix + inner
                if isinstance(inner, str)
                else {key: prefix + module for key, module in inner.items()}
            )
            if part == "mlp":
                result += mlp(name, path, block.mlp, embed, layer=index)
            elif part == "attention":
                result += attention(name, path, block.attention, embed, layer=index)
            elif part == "cross_attention":
                result += attention(
                    name, path, block.cross_attention, embed, kv_embed=kv_embed, layer=index
                )
            elif part != "attention_norm" or block.attention_norm:
                result += norm(name, path, block.norm, embed, layer=index)
    if final_norm and stack.final_norm is not None:
        result += norm(final_norm, f"{side}/final_norm", stack.final_norm, embed)
    return result


def is_tied(spec: ModelSpec) -> bool:
    """Whether logits come from the token embedding."""
    return any(isinstance(head, LMHeadSpec) and head.tied for head in spec.heads)


def lm_head(spec: ModelSpec, name: str, *, aliases: tuple[str, ...] = ()) -> list[Tensor]:
    """Returns the tensor of logits that have a table of their own, `[vocab, embed]`; else none."""
    if not any(isinstance(head, LMHeadSpec) and not head.tied for head in spec.heads):
        return []
    kernel = Part("lm_head/projection/kernel", None, transposed)
    return [Tensor(name, (spec.vocab, spec.embed), (kernel,), aliases)]


def split_out(heads: int, head_dim: int) -> View:
    """Returns the view `[heads * head_dim, embed]` → `[embed, heads, head_dim]`."""
    return lambda array: array.reshape(heads, head_dim, -1).transpose(2, 0, 1)


def split_in(heads: int, head_dim: int) -> View:
    """Returns the view `[embed, heads * head_dim]` → `[heads, head_dim, embed]`."""
    return lambda array: array.reshape(-1, heads, head_dim).transpose(1, 2, 0)


def split_vector(heads: int, head_dim: int) -> View:
    """Returns the view `[heads * head_dim]` → `[heads, head_dim]`."""
    return lambda array: array.reshape(heads, head_dim)
