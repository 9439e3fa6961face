"""T5X checkpoints made from what is documented of them, by none of the code under test.

Parameters are drawn one layer at a time under T5X's unscanned names, with joined heads. `restore`
turns them into scanned ones, `released` and `old_orbax` write them, and `expected` says where each
belongs among ours. `logits` is T5X's network and `adafactor` its optimizer, in NumPy.
"""

import json
import pathlib

import ml_dtypes
import msgpack
import numpy as np
import tensorstore as ts

VOCAB, EMBED, HEADS, MLP, BUCKETS = 50, 16, 4, 24, 8
GZIP = {"id": "gzip", "level": 1}


def draw(
    *, layers=3, kv=6, gated=True, tied=False, per_layer=False, decoder_only=False, seed=0
) -> dict[str, np.ndarray]:
    """Returns name → float32 parameters, unscanned, heads joined."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(shape[0]))

    def norm():
        return (1 + 0.2 * rng.standard_normal(EMBED)).astype(np.float32)

    def attention(name):
        shapes = {"query": (EMBED, HEADS * kv), "key": (EMBED, HEADS * kv)}
        shapes |= {"value": (EMBED, HEADS * kv), "out": (HEADS * kv, EMBED)}
        return {f"{name}.{part}.kernel": normal(*shape) for part, shape in shapes.items()}

    found = {}
    for side in ("decoder",) if decoder_only else ("encoder", "decoder"):
        for layer in range(layers):
            one = {}
            if side == "encoder":
                one["pre_attention_layer_norm.scale"] = norm()
                one |= attention("attention")
            else:
                one["pre_self_attention_layer_norm.scale"] = norm()
                one |= attention("self_attention")
                if not decoder_only:
                    one["pre_cross_attention_layer_norm.scale"] = norm()
                    one |= attention("encoder_decoder_attention")
            one["pre_mlp_layer_norm.scale"] = norm()
            for name in ("wi_0", "wi_1") if gated else ("wi",):
                one[f"mlp.{name}.kernel"] = normal(EMBED, MLP)
            one["mlp.wo.kernel"] = normal(MLP, EMBED)
            if per_layer:
                one["relpos_bias.rel_embedding"] = normal(HEADS, BUCKETS)
            found |= {f"{side}.layers_{layer}.{name}": value for name, value in one.items()}
        if not per_layer:
            found[f"{side}.relpos_bias.rel_embedding"] = normal(HEADS, BUCKETS)
        found[f"{side}.{side}_norm.scale"] = norm()
    embedder = "decoder.token_embedder" if decoder_only else "token_embedder"
    found[f"{embedder}.embedding"] = rng.standard_normal((VOCAB, EMBED)).astype(np.float32)
    if not tied:
        found["decoder.logits_dense.kernel"] = normal(EMBED, VOCAB)
    return found


def scan(arrays, *, joined=False):
    """Returns the same parameters as T5X's scalable_t5 has them: layers along axis 1, heads cut."""
    found, stacked = {}, {}
    for name, value in arrays.items():
        side, *rest = name.split(".")
        if rest[0].startswith("layers_"):
            stacked.setdefault((side, ".".join(rest[1:])), []).append(value)
        else:
            found[name] = value
    for (side, name), values in stacked.items():
        if not joined and "attention" in name and name.endswith("kernel"):
            values = [cut_heads(name, value) for value in values]
        found[f"{side}.{side}.{name}"] = np.stack(values, axis=1)
    return found


def cut_heads(name, value):
    if name.endswith("out.kernel"):
        return value.reshape(HEADS, -1, value.shape[1])
    return value.reshape(value.shape[0], HEADS, -1)


def expected(arrays):
    """Returns our path → what it must hold."""
    attentions = {
        "attention": "attention",
        "self_attention": "attention",
        "encoder_decoder_attention": "cross_attention",
    }
    norms = {
        "pre_attention_layer_norm": "attention_norm",
        "pre_self_attention_layer_norm": "attention_norm",
        "pre_cross_attention_layer_norm": "cross_attention_norm",
        "pre_mlp_layer_norm": "mlp_norm",
    }
    matrices = {"wi": "up", "wi_0": "gate", "wi_1": "up", "wo": "down"}
    found, stacked = {}, {}
    for name, value in arrays.items():
        steps = name.split(".")
        if "token_embedder" in steps:
            found["token_embedding/embedding"] = value
        elif steps[1] == "logits_dense":
            found["lm_head/projection/kernel"] = value
        elif steps[1] == "relpos_bias":
            found[f"{steps[0]}/position_bias/embedding"] = value
        elif steps[1].endswith("_norm"):
            found[f"{steps[0]}/final_norm/scale"] = value
        else:
            if steps[2] in attentions:
                part = "output" if steps[3] == "out" else steps[3]
                path, value = f"{attentions[steps[2]]}/{part}/kernel", cut_heads(name, value)
            elif steps[2] in norms:
                path = f"{norms[steps[2]]}/scale"
            elif steps[2] == "mlp":
                path = f"mlp/{matrices[steps[3]]}/kernel"
            else:
                path = "position_bias/embedding"
            stacked.setdefault(f"{steps[0]}/layers/block_0/{path}", []).append(value)
    return found | {path: np.stack(values) for path, values in stacked.items()}


def released(
    folder, arrays, *, step=7, version=3, driver="gfile", prefix="", inline=(), states=None
):
    """Writes the released layout.

    Args:
      folder: in which `checkpoint_N` is made.
      arrays: of `target`.
      step: N.
      version: of the format; None for the one without.
      driver: what wrote it.
      prefix: of the paths it was written under.
      inline: names of arrays that are in the file `checkpoint` itself.
      states: name → moments; inline unless they have the parameter's shape.
    """
    root = pathlib.Path(folder) / f"checkpoint_{step}"
    root.mkdir(parents=True)
    tree = {"target": {}, "state": {"step": _ext(np.int32(step))}}
    leaves = {f"target.{name}": (value, name in inline) for name, value in arrays.items()}
    for name, value in (states or {}).items():
        small = not name.endswith((".v", ".m")) or value.shape == (1,)
        leaves[f"state.param_states.{name}"] = (value, small)
    for name, (value, small) in leaves.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = _ext(value) if small else _folder(root, name, value, version, driver, prefix)
    content = tree if version is None else {"version": version, "optimizer": tree}
    (root / "checkpoint").write_bytes(msgpack.packb(content))
    return root


def old_orbax(folder, arrays, *, step=7):
    """Writes what T5X's Orbax manager wrote in 2023: names in msgpack, folders beside it."""
    root = pathlib.Path(folder) / f"checkpoint_{step}" / "state"
    root.mkdir(parents=True)
    tree = {"target": {}, "state": {"step": _ext(np.int32(step)), "empty": {}}}
    for name, value in arrays.items():
        *parents, last = name.split(".")
        node = tree["target"]
        for parent in parents:
            node = node.setdefault(parent, {})
        _folder(root, f"target.{name}", value, 3, "file", "")
        node[last] = f"PLACEHOLDER://target.{name}"
    (root / "checkpoint").write_bytes(msgpack.packb(tree))
    return root.parent


def nested(arrays):
    """Returns `{"target": …}` as nested dicts, which today's Orbax writes."""
    tree = {}
    for name, value in arrays.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def _ext(value):
    """Returns an array as flax packs it."""
    value = np.asarray(value)
    packed = msgpack.packb((list(value.shape), value.dtype.name, value.tobytes()))
    return msgpack.ExtType(1, packed)


def _folder(root, name, value, version, driver, prefix):
    """Writes zarr, and returns T5X's description of it."""
    stored = value
    if version == 2 and value.dtype == ml_dtypes.bfloat16:
        stored = value.view(np.uint16)
    chunks = [max(1, -(-size // 2)) for size in stored.shape]
    ts.open(
        {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": str(root / name)},
            "metadata": {
                "shape": list(stored.shape),
                "chunks": chunks,
                "dtype": "bfloat16" if stored.dtype == ml_dtypes.bfloat16 else stored.dtype.str,
                "compressor": GZIP,
            },
        },
        create=True,
    ).result().write(stored).result()
    path = f"{prefix}{name}"
    kvstore = {"driver": driver, "path": path}
    spec = {"driver": "zarr", "dtype": stored.dtype.name, "kvstore": kvstore}
    if driver == "gcs":  # as before TensorStore 0.1.14
        spec |= {"kvstore": {"driver": "gcs", "bucket": "t5x-dummy-bucket"}, "path": path}
    return spec | {"metadata": {"shape": list(stored.shape), "chunks": chunks, "compressor": GZIP}}


def describe(root):
    """Returns the file `checkpoint` with arrays unpacked, and the zarr headers by folder."""

    def unpack(code, data):
        shape, dtype, content = msgpack.unpackb(data)
        return np.frombuffer(content, dtype).reshape(shape)

    content = msgpack.unpackb((root / "checkpoint").read_bytes(), ext_hook=unpack)
    headers = {path.parent.name: json.loads(path.read_text()) for path in root.glob("*/.zarray")}
    return content, headers


def read_as_t5x(root, described):
    """Reads an array in T5X's steps: its description becomes a Spec, less what may have changed."""
    spec = ts.Spec(described).to_json()
    del spec["metadata"]["chunks"], spec["metadata"]["compressor"]
    spec["kvstore"]["path"] = str(root / spec["kvstore"]["path"])
    return ts.open(spec, open=True).result().read().result()


def logits(arrays, inputs, targets, *, layers=3):
    """Returns T5X's logits `[batch, length, vocab]` in float64, without packing or padding."""
    p = {name: value.astype(np.float64) for name, value in arrays.items()}

    def norm(x, name):
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * p[f"{name}.scale"]

    def bias(side, layer, length):
        table = p.get(f"{side}.relpos_bias.rel_embedding")
        if table is None:
            table = p[f"{side}.layers_{layer}.relpos_bias.rel_embedding"]
        offsets = np.arange(length)[None] - np.arange(length)[:, None]  # key minus query
        buckets = np.vectorize(lambda d: _bucket(int(d), side == "encoder"))(offsets)
        values = table[:, buckets]
        return values if side == "encoder" else np.where(offsets > 0, -1e10, values)

    def attend(x, kv, name, extra):
        q, k, v = (
            (source @ p[f"{name}.{part}.kernel"]).reshape(*source.shape[:2], HEADS, -1)
            for part, source in (("query", x), ("key", kv), ("value", kv))
        )
        scores = np.einsum("bqhd,bkhd->bhqk", q, k) + extra
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("bhqk,bkhd->bqhd", weights, v)
        return mixed.reshape(*x.shape[:2], -1) @ p[f"{name}.out.kernel"]

    def mlp(x, name):
        if f"{name}.wi.kernel" in p:
            hidden = np.maximum(x @ p[f"{name}.wi.kernel"], 0)
        else:
            gate = x @ p[f"{name}.wi_0.kernel"]
            cubic = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
            hidden = 0.5 * gate * (1 + np.tanh(cubic)) * (x @ p[f"{name}.wi_1.kernel"])
        return hidden @ p[f"{name}.wo.kernel"]

    def stack(tokens, side, encoded):
        name = "decoder.token_embedder" if "token_embedder.embedding" not in p else "token_embedder"
        x = p[f"{name}.embedding"][tokens]
        own = "attention" if side == "encoder" else "self_attention"
        for layer in range(layers):
            here = f"{side}.layers_{layer}"
            normed = norm(x, f"{here}.pre_{own}_layer_norm")
            x = x + attend(normed, normed, f"{here}.{own}", bias(side, layer, x.shape[1]))
            if encoded is not None:
                normed = norm(x, f"{here}.pre_cross_attention_layer_norm")
                x = x + attend(normed, encoded, f"{here}.encoder_decoder_attention", 0.0)
            x = x + mlp(norm(x, f"{here}.pre_mlp_layer_norm"), f"{here}.mlp")
        return norm(x, f"{side}.{side}_norm")

    crossed = "encoder.encoder_norm.scale" in p
    encoded = stack(inputs, "encoder", None) if crossed else None
    hidden = stack(targets, "decoder", encoded)
    if "decoder.logits_dense.kernel" in p:
        return hidden @ p["decoder.logits_dense.kernel"]
    name = "token_embedder" if crossed else "decoder.token_embedder"
    return hidden @ p[f"{name}.embedding"].T / np.sqrt(EMBED)


def _bucket(offset, bidirectional):
    """T5's bucket of a key's offset from the query, for 8 buckets and distances up to 128."""
    buckets, base, distance = BUCKETS, 0, -offset
    if bidirectional:
        buckets //= 2
        base, distance = (buckets if offset > 0 else 0), abs(offset)
    distance = max(distance, 0)
    exact = buckets // 2
    if distance < exact:
        return base + distance
    large = exact + int(np.log(distance / exact + 1e-9) / np.log(128 / exact) * (buckets - exact))
    return base + min(large, buckets - 1)


def adafactor(arrays, gradients, *, scanned, beta1=None, min_size=12, rate=0.1):
    """Runs T5X's Adafactor on T5X's arrays.

    Args:
      arrays: name → parameter.
      gradients: of each step, by name.
      scanned: whether arrays of layers have them along axis 1.
      beta1: of the momentum.
      min_size: from which on both of two axes are factored.
      rate: the learning rate.

    Returns:
      Moments, as `released` takes them, and the parameters.
    """
    states, params = {}, dict(arrays)
    for name, start in arrays.items():
        param, state = start.astype(np.float32), {}
        rows, columns, inner = _factor_axes(name, start.shape, scanned, min_size)
        for step, gradient in enumerate(gradients):
            g, decay = gradient[name], np.float32(1 - (step + 1.0) ** -0.8)
            square = g * g + np.float32(1e-30)

            def running(kind, value, state=state, decay=decay):
                state[kind] = decay * state.get(kind, np.float32(0)) + (1 - decay) * value
                return state[kind]

            if rows is None:
                update = g / np.sqrt(running("v", square))
            else:
                row = running("v_row", square.mean(columns))  # without the columns' axes
                col = running("v_col", square.mean(rows))
                row = np.expand_dims(row, columns)
                row = row / row.mean(rows, keepdims=True)
                update = g / np.sqrt(row) / np.sqrt(np.expand_dims(col, rows))
            update = update / np.maximum(1, np.sqrt((update**2).mean(inner, keepdims=True)))
            scale = np.maximum(np.sqrt((param**2).mean(inner, keepdims=True)), np.float32(1e-3))
            update = np.float32(rate) * scale * update
            if beta1 is not None:
                update = np.float32(beta1) * state.get("m", 0) + np.float32(1 - beta1) * update
                state["m"] = update
            param = param - update
        params[name] = param
        for kind in ("v_row", "v_col", "v", "m"):
            states[f"{name}.{kind}"] = state.get(kind, np.zeros(1)).astype(np.float32)
    return states, params


def _factor_axes(name, shape, scanned, min_size):
    """Returns T5X's rows (d1), columns (d0) and the axes of one layer."""
    side, below = name.split(".")[:2]
    stacked = scanned and below == side
    inner = tuple(axis for axis in range(len(shape)) if not (stacked and axis == 1))
    if len(shape) <= 2 and not stacked:
        if len(shape) < 2 or min(shape) < min_size:
            return None, None, inner
        d1, d0 = np.argsort(shape, kind="stable")
        return (int(d1),), (int(d0),), inner
    if not name.endswith("kernel"):
        return None, None, inner
    embed = (len(shape) - 1,) if name.endswith(("out.kernel", "wo.kernel")) else (0,)
    return embed, tuple(axis for axis in inner if axis not in embed), inner
