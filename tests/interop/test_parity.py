"""Every family says what transformers says, both ways: committed references, and live if installed.

A case is a tiny model of odd shape (`parity_cases/`) with all parameters random. Float32 logits
agree within 5e-5 where there is no padding, losses within 1e-5; load → save → load is the identity.
"""

import functools
import importlib.util
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity_cases import CASES, COUNTS, ELSEWHERE, REFERENCED
from parity_cases.heads import HEADED
from saved_models import save_huggingface

import t5lite
from t5lite.errors import InputError
from t5lite.interop import huggingface
from t5lite.interop.origin import Origin
from t5lite.interop.tensors import tensors_from
from t5lite.models import PRESETS, Model, differences, preset
from t5lite.objectives import CausalLM, MaskedLM, Seq2Seq, bind
from t5lite.training.restore import named

REFERENCES = pathlib.Path(__file__).parent / "references"
LOGITS, LOSS = 5e-5, 1e-5
# Of fresh models float32 leaves about one in a thousand further off, as it does transformers from
# its own float64: none by more than ROOM times, and not SEEDS of a family in a row.
ROOM, SEEDS = 4, 3
installed = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
live = pytest.mark.skipif(not installed, reason="pip install 't5lite[parity]' for transformers")
ONE = jax.devices()[:1]


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, batch, valid):
    """Returns the last hidden states, and what every head says."""
    hidden, _ = model.hidden(params, batch)
    said = {"last_hidden_state": hidden}
    for kind in model.heads:
        if kind == "lm":
            said["logits"] = model.logits(params, hidden)
        else:
            said[kind] = model.output(params, kind, hidden, valid)
    return said


def batch_of(model, inputs):
    """Returns a batch by our names from transformers'."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    side = "decoder" if model.topology == "decoder" else "encoder"
    batch = {f"{side}_input_tokens": ids, f"{side}_segment_ids": mask}
    if "decoder_input_ids" in inputs:
        batch["decoder_input_tokens"] = inputs["decoder_input_ids"]
        batch["decoder_segment_ids"] = inputs["decoder_attention_mask"]
    if "token_type_ids" in inputs:
        batch["token_types"] = inputs["token_type_ids"]
    return {name: jnp.asarray(array, jnp.int32) for name, array in batch.items()}


def loss_of(model, params, batch, labels):
    """Returns the mean loss of labels, -100 being none, as our objectives compute it."""
    side = model.topology.rpartition("_")[2]
    objectives = {"encoder": MaskedLM, "decoder": CausalLM, "encoder_decoder": Seq2Seq}
    if model.topology == "decoder":  # transformers shifts them
        labels = np.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=-100)
    batch = batch | {
        f"{side}_target_tokens": jnp.asarray(np.where(labels < 0, 0, labels), jnp.int32),
        f"{side}_loss_weights": jnp.asarray(labels >= 0, jnp.float32),
    }
    objective = bind(objectives[model.topology](), model)
    total, weight = metrics_of(objective, model, params, batch)["loss"]
    return float(total / weight)


@functools.partial(jax.jit, static_argnums=(0, 1))
def metrics_of(objective, model, params, batch):
    return objective.loss(model, params, batch)[1]


def check(loaded, inputs, expected, room=1):
    """Compares what a loaded model says with what transformers did; returns the furthest apart."""
    model, params = loaded.model, loaded.params
    batch = batch_of(model, inputs)
    last = "decoder" if model.spec.decoder is not None else "encoder"
    valid = np.asarray(batch[f"{last}_segment_ids"]) > 0
    said = {name: np.asarray(v) for name, v in forward(model, params, batch, valid).items()}
    ours = {
        "logits": next((said[k] for k in KINDS if k in said), None),
        "start_logits": said["spans"][..., 0] if "spans" in said else None,
        "end_logits": said["spans"][..., 1] if "spans" in said else None,
        "last_hidden_state": said["last_hidden_state"],
        "pooler_output": said.get("pooler"),
    }
    compared = [name for name in expected if ours.get(name) is not None]
    assert compared, sorted(expected)
    furthest = 0.0
    for name in compared:
        difference = np.abs(ours[name] - expected[name])
        if difference.shape[:2] == valid.shape:
            difference = difference[valid]
        furthest = max(furthest, difference.max())
        assert furthest <= room * LOGITS, f"{name} differ by {furthest:.1e}"
        # Or the difference would say little; three fresh numbers may all be small.
        assert np.abs(expected[name]).max() > (0.1 if room == 1 else 20 * LOGITS)
    if "loss" in expected:
        loss = loss_of(model, params, batch, inputs["labels"])
        assert abs(loss - float(expected["loss"])) <= LOSS
    return furthest


KINDS = ("logits", "classification", "regression", "token_labels", "replaced_tokens")


@pytest.mark.parametrize("name", REFERENCED)
def test_a_committed_reference(name):
    folder = REFERENCES / name
    loaded = t5lite.load(folder, dtype="float32", devices=ONE)
    arrays = np.load(folder / "expected.npz")
    parts = {
        part: {key.removeprefix(f"{part}_"): arrays[key] for key in arrays if key.startswith(part)}
        for part in ("input", "output")
    }
    inputs = {key: array.astype(np.int64) for key, array in parts["input"].items()}
    check(loaded, inputs, parts["output"])


def test_every_family_has_a_reference():
    committed = {path.name for path in REFERENCES.iterdir() if path.is_dir()}
    assert committed == set(REFERENCED)
    assert {CASES[name]["model_type"] for name in committed} == set(huggingface.MODULES)
    size = sum(path.stat().st_size for path in REFERENCES.rglob("*") if path.is_file())
    assert size <= 8_000_000


@live
@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_live(name, tmp_path):
    import transformers
    from parity import outputs, reference

    config = CASES[name]
    for _ in range(SEEDS):
        seed = np.random.default_rng().integers(2, 1 << 30)  # fresh ones, told where it fails
        print(f"seed {seed}")
        theirs, inputs, expected = reference(config, int(seed))
        theirs.save_pretrained(tmp_path / "theirs")
        loaded = t5lite.load(tmp_path / "theirs", devices=ONE)
        if check(loaded, inputs, expected, room=ROOM) <= LOGITS:
            break
    else:
        pytest.fail(f"none of {SEEDS} models is within {LOGITS}")

    # Padding's id, which decoders' heads need, is nowhere else.
    origin = Origin(tmp_path / "theirs") if name in HEADED else None
    save_huggingface(tmp_path / "ours", loaded.model, loaded.params, origin=origin)
    again = t5lite.load(tmp_path / "ours", devices=ONE)
    assert differences(again.spec, loaded.spec) == []
    for path, leaf in named(again.params).items():
        np.testing.assert_array_equal(leaf, named(loaded.params)[path], err_msg=path)

    opened, information = getattr(transformers, config["architectures"][0]).from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    problems = {key: value for key, value in information.items() if value}
    assert not problems
    labels = inputs.pop("labels", None)
    returned = outputs(opened.eval(), inputs, labels)
    for key, array in expected.items():
        # The same weights, yet transformers adds up experts' outputs in no fixed order.
        np.testing.assert_allclose(returned[key], array, rtol=1e-5, atol=1e-5, err_msg=key)


SIZES = {name: count for name, (_, count) in COUNTS.items()} | ELSEWHERE


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.light("t5gemma_b_b", "palm_62b", "switch_base_8")
def test_published_sizes(name):
    shapes = Model(preset(name)).shapes()
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == SIZES[name]
    if name in ELSEWHERE:
        with pytest.raises(InputError, match="transformers"):
            huggingface.describe(preset(name))
        return
    names = [each for each, *_ in tensors_from(shapes, huggingface.describe(preset(name)).tensors)]
    assert len(names) == len(set(names))


def test_every_preset_is_counted():
    assert set(SIZES) == {name for name in PRESETS if not name.endswith(("_nano", "_pico"))}


@live
@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_transformers_counts_the_same(name):
    import torch
    import transformers
    from parity import separate_logits

    config, count = COUNTS[name]
    fields = {key: value for key, value in config.items() if key != "architectures"}
    with torch.device("meta"):
        made = transformers.AutoConfig.for_model(**fields)
        model = getattr(transformers, config["architectures"][0])(made)
        separate_logits(model, config)
    # BART's bias of logits, zero but in Marian, is a buffer there; computed positions are frozen.
    biased = any(getattr(head, "use_bias", False) for head in preset(name).heads)
    counted = [each for each in model.parameters() if each.requires_grad]
    counted += [b for key, b in model.named_buffers() if key == "final_logits_bias" and biased]
    assert sum(each.numel() for each in counted) == count
