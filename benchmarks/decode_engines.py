"""The engines of `decode_speed.py`, each built and asked in a process of its own."""

import collections
import dataclasses
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CORES = len(os.sched_getaffinity(0))
Write = Callable[[np.ndarray, int], np.ndarray | None]  # prompts, most new tokens → new tokens
Numbers = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured; a worker's first line.

    Args:
      preset: the model.
      folder: holds `model`, a Hugging Face folder, `ctranslate2` and `compiled`.
      batch, prompt_length, new_tokens: sizes.
      dtype: of weights and activations; "" for what the device is good at.
      vocab, start_id, topology: of the model, for peers that know no presets.
    """

    preset: str
    folder: str
    batch: int = 1
    prompt_length: int = 128
    new_tokens: int = 64
    dtype: str = ""
    vocab: int = 0
    start_id: int = 0
    topology: str = ""

    @property
    def model(self) -> str:
        return f"{self.folder}/model"

    def prompts(self, length: int) -> np.ndarray:
        """Returns `[batch, length]` ids, random but for special ones."""
        rng = np.random.default_rng(0)
        return rng.integers(3, self.vocab - 1, (self.batch, length), dtype=np.int32)

    def begun(self, prompts: np.ndarray) -> np.ndarray:
        """Returns what a peer reads: a decoder's texts begin with the start token, as ours do."""
        first = ((0, 0), (1 if self.topology == "decoder" else 0, 0))
        return np.pad(prompts, first, constant_values=self.start_id)


def build(engine: str, case: Case) -> tuple[Callable[[Numbers], Numbers], Numbers]:
    """Builds an engine, and returns what has it write, and what there is to say of it."""
    begin = time.perf_counter()
    write, about = ENGINES[engine](case)
    about = {"load_seconds": time.perf_counter() - begin} | about

    def answer(order: Numbers) -> Numbers:
        prompts = case.prompts(order["prompt_length"])
        begin = time.perf_counter()
        tokens = write(prompts, order["new_tokens"])
        seconds = time.perf_counter() - begin
        said = None if tokens is None else np.asarray(tokens).tolist()
        return {"seconds": seconds, "tokens": said, "memory": memory(), "events": dict(EVENTS)}

    return answer, about


EVENTS: collections.Counter[str] = collections.Counter()  # of JAX, since the worker's start


def noted(event: str, *_: Any, **__: Any) -> None:
    """Counts an event."""
    EVENTS[event] += 1


def memory() -> int:
    """Returns the most bytes that this process held: on the GPU, if it uses one that says so."""
    jax, torch = sys.modules.get("jax"), sys.modules.get("torch")
    if jax is not None and jax.default_backend() == "gpu":
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def write_weights(case: Case) -> tuple[Any, Numbers]:
    """Writes a Hugging Face folder with random weights."""
    import jax

    from t5lite.interop import Description, save
    from t5lite.models import Model, preset

    spec = preset(case.preset)
    # As it is initialised, T5 says its start token for ever; with these it says various ones.
    factors = {"token_embedding": 0.02, "query": 8.0} if spec.topology == "encoder_decoder" else {}

    def scaled(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path)
        factor = next((each for part, each in factors.items() if part in name), 1.0)
        return leaf * jax.numpy.float32(factor)

    model = Model(spec)
    params = jax.tree_util.tree_map_with_path(scaled, jax.jit(model.init)(jax.random.key(0)))
    save(case.model, Description(model.spec), params, kind="huggingface")
    return None, {
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "case": {"vocab": spec.vocab, "start_id": spec.start_id, "topology": spec.topology},
    }


def build_t5lite(case: Case) -> tuple[Write, Numbers]:
    """Opens the folder, and writes as `Loaded.generate` does, which knows texts alone."""
    import jax

    import t5lite
    from t5lite.inference import Options, Request, Rules
    from t5lite.inference.batching import bucket
    from t5lite.models import ComputeSpec

    jax.config.update("jax_compilation_cache_dir", f"{case.folder}/compiled")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.monitoring.register_event_listener(noted)
    jax.monitoring.register_event_duration_secs_listener(noted)
    compute = ComputeSpec(dtype=case.dtype)
    loaded = t5lite.load(case.model, devices=jax.devices()[:1], dtype=case.dtype, compute=compute)
    engine, params, spec = loaded.engine, loaded.decoding_params, loaded.spec
    capacity, options = bucket(case.new_tokens), Options(max_new_tokens=case.new_tokens)
    rules = Rules(eos_ids=())  # no row ends early
    longest = (spec.encoder or spec.decoder).max_length

    def write(prompts: np.ndarray, new_tokens: int) -> np.ndarray:
        requests = [Request(row.tolist(), options, rules=rules) for row in prompts]
        length = prompts.shape[1]
        length = bucket(length, longest and max(length, longest - capacity))
        cache_length = capacity + (length if spec.encoder is None else 0)
        sizes = {"cache_length": cache_length, "capacity": capacity}
        state = engine.prefill(params, requests, **sizes)
        state = engine.decode(params, state, engine.settings(requests), steps=new_tokens)
        return np.asarray(state.output.tokens)[: case.batch, :new_tokens]

    return write, {"version": f"jax {jax.__version__}"}


def build_transformers(case: Case) -> tuple[Write, Numbers]:
    """Opens the folder as its users do."""
    import torch
    import transformers

    torch.set_num_threads(CORES)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = {
        "encoder_decoder": transformers.AutoModelForSeq2SeqLM,
        "decoder": transformers.AutoModelForCausalLM,
    }[case.topology]
    model = kind.from_pretrained(case.model, dtype=getattr(torch, case.dtype)).to(device).eval()
    model.generation_config.eos_token_id = None  # no row ends early
    model.generation_config.pad_token_id = 0

    def write(prompts: np.ndarray, new_tokens: int) -> np.ndarray:
        ids = torch.from_numpy(case.begun(prompts)).long().to(device)
        sizes = {"max_new_tokens": new_tokens, "do_sample": False}
        with torch.inference_mode():
            found = model.generate(ids, attention_mask=torch.ones_like(ids), **sizes)
        return found[:, -new_tokens:].cpu().numpy()

    return write, {"version": f"{transformers.__version__}, torch {torch.__version__}"}


def convert(case: Case) -> tuple[Any, Numbers]:
    """Writes what CTranslate2 reads, with tokens that are called by their ids."""
    import ctranslate2
    import tokenizers
    import transformers

    class Converter(ctranslate2.converters.TransformersConverter):
        def load_tokenizer(self, *_: Any, **__: Any) -> Any:
            words = tokenizers.models.WordLevel({str(n): n for n in range(case.vocab)}, "2")
            names = {"pad_token": "0", "eos_token": "1", "bos_token": "1", "unk_token": "2"}
            tokenizer = tokenizers.Tokenizer(words)
            return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)

    Converter(case.model).convert(f"{case.folder}/ctranslate2")
    return None, {}


def build_ctranslate2(case: Case) -> tuple[Write, Numbers]:
    """Opens what `convert` wrote."""
    import ctranslate2

    both = case.topology == "encoder_decoder"
    engine = (ctranslate2.Translator if both else ctranslate2.Generator)(
        f"{case.folder}/ctranslate2",
        device="cuda" if ctranslate2.get_cuda_device_count() else "cpu",
        compute_type=case.dtype,
        intra_threads=CORES,
        inter_threads=1,
    )

    def write(prompts: np.ndarray, new_tokens: int) -> np.ndarray:
        rows = [list(map(str, row)) for row in case.begun(prompts).tolist()]
        if both:
            sizes = {"max_decoding_length": new_tokens, "min_decoding_length": new_tokens}
            found = engine.translate_batch(rows, beam_size=1, **sizes)
            written = [each.hypotheses[0] for each in found]
        else:
            sizes = {"max_length": new_tokens, "min_length": new_tokens}
            found = engine.generate_batch(
                rows, beam_size=1, include_prompt_in_result=False, **sizes
            )
            written = [each.sequences[0] for each in found]
        return np.array(written).astype(np.int32)

    return write, {"version": f"{ctranslate2.__version__}, {engine.compute_type}"}


def build_matrices(case: Case) -> tuple[Write, Numbers]:
    """Multiplies by the weights of one step again and again, each an array of its own."""
    import jax
    import jax.numpy as jnp

    from t5lite.models import preset

    spec, dtype = preset(case.preset), jnp.dtype(case.dtype)
    turns, head = products(spec)
    keys = iter(jax.random.split(jax.random.key(0), sum(map(len, turns)) + 1))

    def weight(shape: tuple[int, int]) -> jax.Array:
        return jax.random.normal(next(keys), shape, dtype) * dtype.type(shape[0] ** -0.5)

    weights, last = [list(map(weight, shapes)) for shapes in turns], weight(head)

    @jax.jit
    def run(weights: Any, last: jax.Array, x: jax.Array, steps: jax.Array) -> Any:
        def step(_: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            x, _ = state  # logits are kept so that they are computed
            for matrices in weights:
                first, *rest = [x @ matrix for matrix in matrices]
                for each in rest:  # grouped queries have fewer keys and values
                    first += jnp.pad(each, ((0, 0), (0, first.shape[1] - each.shape[1])))
                x = first
            x /= jnp.max(jnp.abs(x))[None, None]
            return x, jax.lax.dot_general(x, last, (((1,), (head.index(spec.embed),)), ((), ())))

        logits = jnp.zeros((case.batch, spec.vocab), dtype)
        return jax.lax.fori_loop(0, steps, step, (x, logits))

    x = jnp.ones((case.batch, spec.embed), dtype)

    def write(prompts: np.ndarray, new_tokens: int) -> None:
        jax.block_until_ready(run(weights, last, x, np.int32(new_tokens)))

    about: Numbers = {"bytes": step_bytes(case, spec, dtype.itemsize)}
    if jax.default_backend() == "gpu":
        about["bandwidth"] = copy_bandwidth()
    return write, about


def products(spec: Any) -> tuple[list[list[tuple[int, int]]], tuple[int, int]]:
    """Returns the shapes of a decoder step's weights: those with one input together; the head's."""
    embed, turns = spec.embed, []

    def attention(own: Any, *, cross: bool) -> None:
        joined = own.num_heads * own.head_dim
        fresh = 0 if cross else 2  # the encoder's keys and values stand in the cache
        turns.append([(embed, joined), *[(embed, own.kv_heads * own.head_dim)] * fresh])
        turns.append([(joined, embed)])

    blocks = spec.decoder.blocks
    for layer in range(spec.decoder.num_layers):
        block = blocks[layer % len(blocks)]
        attention(block.attention, cross=False)
        if block.cross_attention is not None:
            attention(block.cross_attention, cross=True)
        turns.append([(embed, block.mlp.hidden)] * (2 if block.mlp.gated else 1))
        turns.append([(block.mlp.hidden, embed)])
    tied = next(head for head in spec.heads if head.kind == "lm").tied
    return turns, (spec.vocab, embed) if tied else (embed, spec.vocab)


def step_bytes(case: Case, spec: Any, itemsize: int) -> int:
    """Returns what a step must read: weights once, and keys and values halfway through."""
    turns, head = products(spec)
    own = spec.decoder.blocks[0].attention
    held = case.prompt_length + case.new_tokens // 2
    cached = case.batch * held * spec.decoder.num_layers * 2 * own.kv_heads * own.head_dim
    weights = sum(a * b for shapes in turns for a, b in shapes) + head[0] * head[1]
    return itemsize * (weights + cached)


def copy_bandwidth() -> float:
    """Returns bytes a second, read and written, of a large copy."""
    import jax
    import jax.numpy as jnp

    x, count = jnp.zeros(2**29, jnp.bfloat16), 20
    copy = jax.jit(lambda x: x + jnp.bfloat16(1))
    jax.block_until_ready(copy(x))
    begin = time.perf_counter()
    for _ in range(count):
        x = copy(x)  # dispatched while the last is under way
    jax.block_until_ready(x)
    return 2 * count * x.nbytes / (time.perf_counter() - begin)


ENGINES: dict[str, Callable[[Case], tuple[Any, Numbers]]] = {
    "weights": write_weights,
    "conversion": convert,
    "matrices": build_matrices,
    "t5lite": build_t5lite,
    "transformers": build_transformers,
    "ctranslate2": build_ctranslate2,
}
