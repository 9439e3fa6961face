"""Errors for folders that hold a PEFT adapter rather than a model."""

import json
from collections.abc import Iterable
from typing import Any

from t5lite.errors import InputError

CONFIG = "adapter_config.json"
_TENSORS = ("adapter_model.safetensors", "adapter_model.bin")
# By PEFT's `task_type`, the class that opens an adapter together with its base.
_CLASSES = {
    "CAUSAL_LM": "AutoPeftModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoPeftModelForSeq2SeqLM",
    "SEQ_CLS": "AutoPeftModelForSequenceClassification",
    "TOKEN_CLS": "AutoPeftModelForTokenClassification",
    "QUESTION_ANS": "AutoPeftModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoPeftModelForFeatureExtraction",
}
_PROMPTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT")
_UNMERGED = (".lora_A.", ".lora_B.", ".lora_embedding_", ".base_layer.", ".modules_to_save.")


def is_adapter(folder: Any) -> bool:
    return any((folder / name).exists() for name in (CONFIG, *_TENSORS))


def check_adapter(folder: Any, *, weights: bool) -> None:
    """Raises an InputError with merge instructions for an adapter; `weights`: beside a model."""
    if not is_adapter(folder):
        return
    config = _read(folder / CONFIG)
    base, kind = config.get("base_model_name_or_path"), config.get("peft_type") or "unknown kind"
    adapter = f"a PEFT adapter ({kind}) of {str(base or 'an unnamed base model')!r}"
    if weights:
        message = (
            f"{folder} holds a whole model, and beside it {adapter}; for the model alone, "
            f"move {CONFIG} and adapter_model.* out of the folder\n"
            + _merging(folder, config, heading="for both, merge them")
        )
    elif kind in _PROMPTS:
        message = (
            f"{folder} holds {adapter}, not a model: its learned prompts cannot be merged into "
            "weights, and are not supported; give a model"
        )
    else:
        message = f"{folder} holds {adapter}, not a model\n" + _merging(
            folder, config, heading="merge it into its base"
        )
    raise InputError(message)


def check_merged(names: Iterable[str], *, where: str) -> None:
    """Raises an InputError if a model's tensors have adapters among them."""
    unmerged = next((name for name in names if any(part in name for part in _UNMERGED)), None)
    if unmerged is not None:
        raise InputError(
            f"{where} was saved with an adapter that is not merged into its weights ({unmerged}); "
            "where it was trained, save it as\n  model = model.merge_and_unload()\n"
            '  model.save_pretrained("MERGED"); tokenizer.save_pretrained("MERGED")\n'
            "and give MERGED"
        )


def _merging(folder: Any, config: dict[str, Any], *, heading: str) -> str:
    has_tokenizer = (folder / "tokenizer_config.json").exists()
    source = str(folder) if has_tokenizer else config.get("base_model_name_or_path") or "BASE"
    name = _CLASSES.get(str(config.get("task_type")), "AutoPeftModelForCausalLM")
    return (
        f"{heading}, where peft is installed, and give MERGED:\n"
        f"  from peft import {name} as Auto; from transformers import AutoTokenizer\n"
        f'  Auto.from_pretrained("{folder}").merge_and_unload().save_pretrained("MERGED")\n'
        f'  AutoTokenizer.from_pretrained("{source}").save_pretrained("MERGED")'
    )


def _read(path: Any) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
