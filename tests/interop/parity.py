"""Random models of transformers' and what they say, for the committed references and fresh seeds.

All of it needs torch and transformers, which the `parity` extra installs.
"""

from typing import Any

import numpy as np
import torch
import transformers

ROWS, LENGTH, TARGET_LENGTH = 3, 13, 11
LENGTHS, TARGET_LENGTHS = (13, 9, 5), (11, 4, 8)


def build(config: dict[str, Any], seed: int) -> Any:
    """Returns a model with every parameter and buffer of its checkpoint drawn at random.

    Defaults of ones and zeros would hide norms and biases that are mixed up.
    """
    fields = {name: value for name, value in config.items() if name != "architectures"}
    made = transformers.AutoConfig.for_model(**fields)
    made.architectures = config["architectures"]
    made._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = getattr(transformers, config["architectures"][0])(made).eval()
    separate_logits(model, config)
    kept = computed(model)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name in kept or not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape)
            if tensor.ndim == 1 and name.endswith("weight"):
                tensor.copy_(1 + 0.3 * noise)  # of a norm
            elif tensor.ndim < 2 or min(tensor.shape) == 1:
                tensor.copy_(0.3 * noise)
            else:
                tensor.copy_(noise / max(tensor.shape[-1], 8) ** 0.5)
    return model


def computed(model: Any) -> set[str]:
    """Returns the names of tables that are saved although they are computed (PEGASUS, Marian)."""
    named = model.named_parameters()
    return {name for name, each in named if "embed_positions" in name and not each.requires_grad}


def separate_logits(model: Any, config: dict[str, Any]) -> None:
    """Gives logits a table of their own where the config asks for it.

    transformers 5 ties those of T5-likes whatever it says, and heeds what the weights say.
    """
    output = model.get_output_embeddings()
    tied = config.get("tie_word_embeddings", True)
    if not tied and output is not None and output.weight is model.get_input_embeddings().weight:
        output.weight = torch.nn.Parameter(torch.empty_like(output.weight))


def inputs(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Returns ids and masks by transformers' names, rows padded on the right."""
    rng = np.random.default_rng(seed)
    made = transformers.AutoConfig.for_model(
        **{name: value for name, value in config.items() if name != "architectures"}
    )
    pad = made.pad_token_id
    pad = 0 if pad is None else pad

    def rows(length: int, lengths: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        mask = (np.arange(length) < np.array(lengths)[:, None]).astype(np.int64)
        choice = np.setdiff1d(np.arange(3, made.vocab_size), [pad])
        return np.where(mask > 0, rng.choice(choice, (ROWS, length)), pad), mask

    ids, mask = rows(LENGTH, LENGTHS)
    batch = {"input_ids": ids, "attention_mask": mask}
    if getattr(made, "is_encoder_decoder", False):
        ids, mask = rows(TARGET_LENGTH, TARGET_LENGTHS)
        batch |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
    elif getattr(made, "type_vocab_size", 0) == 2:
        batch["token_type_ids"] = rng.integers(0, 2, ids.shape)
    return batch


def labels_of(config: dict[str, Any], batch: dict[str, np.ndarray], seed: int) -> Any:
    """Returns labels for the loss, -100 where there is none; None for models without one."""
    architecture = config["architectures"][0]
    rng = np.random.default_rng(seed + 1)
    if architecture.endswith(("ForConditionalGeneration", "MTModel")):
        mask = batch["decoder_attention_mask"]
        return np.where(mask > 0, rng.integers(3, 60, mask.shape), -100)
    if architecture.endswith("ForMaskedLM"):
        mask = batch["attention_mask"] * (rng.random((ROWS, LENGTH)) < 0.4)
        return np.where(mask > 0, rng.integers(3, 60, mask.shape), -100)
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return np.where(batch["attention_mask"] > 0, batch["input_ids"], -100)
    return None


def outputs(model: Any, batch: dict[str, np.ndarray], labels: Any = None) -> dict[str, np.ndarray]:
    """Returns what the model says, under the names that `ours` in the tests has too."""
    arguments = {name: torch.from_numpy(array) for name, array in batch.items()}
    if labels is not None:
        arguments["labels"] = torch.from_numpy(labels)
    with torch.no_grad():
        said = model(**arguments)
    found = {}
    for name in ("logits", "start_logits", "end_logits", "last_hidden_state", "pooler_output"):
        value = getattr(said, name, None)
        if value is not None:
            found[name] = value.float().numpy()
    if labels is not None:
        found["loss"] = said.loss.float().numpy()
    return found


def reference(config: dict[str, Any], seed: int, *, rounded: bool = False) -> Any:
    """Returns a model to save, its inputs and what it says to them.

    Args:
      config: of the model.
      seed: of everything.
      rounded: whether parameters are bfloat16 numbers, so that they can be saved as such.
    """
    model = build(config, seed)
    if rounded:
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if tensor.is_floating_point() and name not in computed(model):
                    tensor.copy_(tensor.bfloat16().float())
    batch = inputs(config, seed)
    labels = labels_of(config, batch, seed)
    said = outputs(model, batch, labels)
    extra = {} if labels is None else {"labels": labels}
    return model, batch | extra, said
