"""Hugging Face folders, both ways: `config.json`, `model.safetensors`, tokenizer files."""

from t5lite.interop.huggingface.describing import describe, export_note
from t5lite.interop.huggingface.families import MODULES
from t5lite.interop.huggingface.folder import has_weights, is_folder, losses, open_model, save

__all__ = [
    "MODULES",
    "describe",
    "export_note",
    "has_weights",
    "is_folder",
    "losses",
    "open_model",
    "save",
]
