"""Hugging Face folders, both ways: `config.json`, `model.safetensors`, tokenizer files."""

from t5lite.interop.huggingface.families import MODULES
from t5lite.interop.huggingface.folder import describe, has_weights, is_folder, open_model, save

__all__ = ["MODULES", "describe", "has_weights", "is_folder", "open_model", "save"]
