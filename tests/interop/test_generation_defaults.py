"""What a folder's own files say of generation is read, kept and written again."""

import json

import pytest
from saved_models import save_model
from small_folders import add_tokenizer, copied

import t5lite
from t5lite import interop
from t5lite.errors import InputError
from t5lite.interop.generation_defaults import GenerationDefaults, read_defaults

SAID = {"eos_token_id": [3, 7], "num_beams": 4, "forced_bos_token_id": 9}


def folder_of(tmp_path, generation=None, **config):
    folder = add_tokenizer(copied("gpt2", tmp_path / "hf", **config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def test_the_file_of_its_own_goes_before_config_json(tmp_path):
    said = {**SAID, "top_k": None, "transformers_version": "5", "_from_model_config": True}
    folder = folder_of(tmp_path, said, eos_token_id=5, no_repeat_ngram_size=3)
    assert interop.open_model(folder).description.generation == GenerationDefaults(SAID)


def test_older_folders_say_it_in_config_json(tmp_path):
    folder = folder_of(tmp_path, eos_token_id=[5, 6], no_repeat_ngram_size=3)
    found = interop.open_model(folder).description.generation
    assert found.eos_ids == (5, 6)
    assert found.content["no_repeat_ngram_size"] == 3
    assert "n_layer" not in found.content


def test_a_folder_of_t5lite_keeps_it(tmp_path):
    loaded = t5lite.load(folder_of(tmp_path, SAID))
    save_model(
        tmp_path / "own", loaded.model, loaded.params, generation=loaded.description.generation
    )
    assert t5lite.load(tmp_path / "own").description.generation == GenerationDefaults(SAID)


def test_an_encoder_has_none(tmp_path):
    folder = add_tokenizer(copied("bert", tmp_path / "hf"))
    (folder / "generation_config.json").write_text(json.dumps(SAID))
    assert interop.open_model(folder).description.generation is None


@pytest.mark.parametrize(
    "content",
    ["[1", "[1]", '{"eos_token_id": "</s>"}', '{"bad_words_ids": [5]}', '{"bad_words_ids": "x"}'],
)
def test_damage_is_told_with_the_file(tmp_path, content):
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(InputError, match=r"generation_config\.json"):
        read_defaults(tmp_path)
