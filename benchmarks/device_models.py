"""The models and batches of `device_parity.py`, transformers' and ours, random as in the tests."""

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests" / "interop"))

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from parity import build as random_model
from parity_cases import CASES, COUNTS

import t5lite
from t5lite.models import ComputeSpec

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Named = dict[str, Any]
Batch = dict[str, np.ndarray]


def families(tiny: bool) -> dict[str, Named]:
    """Returns configs of six families: the tests' cases, larger."""
    width, layers, heads, window = (64, 3, 2, 8) if tiny else (512, 6, 8, 64)
    sizes = {"vocab_size": 512 if tiny else 8192, "max_position_embeddings": 4096}
    t5 = {"d_model": width, "d_kv": width // heads, "d_ff": 2 * width, "num_heads": heads, **sizes}
    t5 |= {"num_layers": layers, "num_decoder_layers": layers}
    t5 |= {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}
    plain = {"hidden_size": width, "intermediate_size": 3 * width, **sizes}
    plain |= {"num_hidden_layers": layers, "num_attention_heads": heads}
    grouped = {**plain, "num_key_value_heads": heads // 2, "head_dim": width // heads}
    bart = {"d_model": width, **sizes}
    for side in ("encoder", "decoder"):
        bart |= {f"{side}_layers": layers, f"{side}_attention_heads": heads}
        bart |= {f"{side}_ffn_dim": 4 * width}
    return {
        "t5_1_1": CASES["t5_1_1"] | t5,
        "modernbert": CASES["modernbert"] | plain | {"local_attention": 2 * window},
        "llama": CASES["llama"] | grouped,
        "gemma2": CASES["gemma2"] | grouped | {"sliding_window": window},
        "bart": CASES["bart"] | bart,
        "switch": CASES["switch"] | t5 | {"num_experts": 8, "expert_capacity": 4 * window},
    }


def timed(tiny: bool) -> dict[str, tuple[Named, Batch]]:
    """Returns what is timed: configs without dropout, which cuDNN has none of, and full rows."""
    gpt2 = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    cases: dict[str, tuple[str, Named, tuple[int, ...]]] = {
        "bert_base": ("bert", {}, (32, 512)),
        "gpt2": ("gpt2", gpt2, (8, 1024)),
        "t5_1_1_base": ("t5_1_1", {"dropout_rate": 0.0}, (16, 512, 128)),
        "llama3_2_1b": ("llama", {"dtype": "bfloat16"}, (4, 2048)),
    }
    found = {}
    for name, (small, changes, sizes) in cases.items():
        config = (CASES[small] if tiny else COUNTS[name][0]) | changes
        found[name] = config, rows(config, (2, 16, 8)[: len(sizes)] if tiny else sizes)
    return found


def saved(path: Path, config: Named) -> Path:
    """Returns a folder of transformers' with a random model, which is made if it is not there."""
    if not (path / "config.json").exists():
        with torch.device(DEVICE):
            model = random_model(config, 0)
        with torch.no_grad():  # T5 does not scale its logits, and so begins with small queries
            for name, weight in model.named_parameters():
                if name.endswith(("SelfAttention.q.weight", "EncDecAttention.q.weight")):
                    weight.mul_(model.config.d_kv**-0.5)
        model.to(getattr(torch, config.get("dtype", "float32"))).save_pretrained(path)
    return path


def theirs(folder: Path, dtype: torch.dtype, *, attention: str = "sdpa") -> Any:
    """Returns transformers' model, which keeps no keys and values."""
    architecture = transformers.AutoConfig.from_pretrained(folder).architectures[0]
    open_folder = getattr(transformers, architecture).from_pretrained
    model = open_folder(folder, dtype=dtype, attn_implementation=attention).to(DEVICE)
    model.config.use_cache = False
    return model.eval()


def ours(folder: Path, parameters: str = "bfloat16", *, activations: str = "bfloat16") -> Any:
    """Returns t5lite's model, on one device."""
    compute = ComputeSpec(dtype=activations)
    return t5lite.load(folder, dtype=parameters, compute=compute, devices=jax.devices()[:1])


def rows(config: Named, sizes: tuple[int, ...], *, masks: bool = False) -> Batch:
    """Returns random ids, `sizes` being rows, their length, and targets'; masks end rows early."""
    rng = np.random.default_rng(0)
    found = {}
    for side, length in zip(("", "decoder_"), sizes[1:], strict=False):
        ids = rng.integers(3, config.get("vocab_size", 30000), (sizes[0], length))
        found[f"{side}input_ids"] = ids
        if masks:
            lengths = np.linspace(length, length // 3, sizes[0]).astype(int)
            found[f"{side}attention_mask"] = (np.arange(length) < lengths[:, None]).astype(np.int64)
    return found


def on_torch(batch: Batch) -> dict[str, torch.Tensor]:
    """Returns a batch on the device."""
    return {name: torch.from_numpy(array).to(DEVICE) for name, array in batch.items()}


def on_jax(batch: Batch, topology: str) -> dict[str, jax.Array]:
    """Returns a batch on the device, by our names."""
    first = "decoder" if topology == "decoder" else "encoder"
    names = {"input_ids": f"{first}_input_tokens", "attention_mask": f"{first}_segment_ids"}
    names |= {"decoder_input_ids": "decoder_input_tokens"}
    names |= {"decoder_attention_mask": "decoder_segment_ids"}
    return {names[name]: jnp.asarray(array, jnp.int32) for name, array in batch.items()}
