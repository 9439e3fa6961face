"""What a model's files say of generation: token for token what transformers writes with them."""

import dataclasses
import json
import os
import re

import jax
import numpy as np
import pytest
from small_folders import add_tokenizer, copied

import t5lite
from t5lite.errors import InputError

pytest.importorskip("tokenizers")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ONE = jax.devices()[:1]
WORDS = [f"w{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(40)]  # 97 ids in all, as models
TEXTS = ["a cat sat", "the end of it all"]
NEW = 14


@pytest.fixture(scope="module", params=["gpt2", "bart"])
def pair(request, tmp_path_factory):
    """A folder, and its model in transformers."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param) / "model"
    add_tokenizer(copied(request.param, folder), words=WORDS)
    kind = "Seq2SeqLM" if request.param == "bart" else "CausalLM"
    model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(
        folder, dtype=torch.float32
    )
    return folder, model.eval()


@pytest.fixture(scope="module")
def loaded(pair):
    return t5lite.load(pair[0], dtype="float32", devices=ONE)


def output(pair, loaded, content):
    """The same model, beside a `generation_config.json`."""
    folder, model = pair
    start = {"decoder_start_token_id": loaded.spec.start_id, "pad_token_id": 0}
    content = {"eos_token_id": 3, **start, **content}
    (folder / "generation_config.json").write_text(json.dumps(content))
    model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    defaults = t5lite.interop.open_model(folder).description.generation
    assert dict(defaults.content) == content
    return dataclasses.replace(loaded, description=loaded.description.replace(generation=defaults))


def theirs(pair, loaded, text, **options):
    model, prompts = pair[1], loaded.prompts.of(None)
    ids = prompts.inputs(loaded.vocabulary.encode(text))
    alone = loaded.model.topology == "decoder"
    ids = [loaded.spec.start_id, *ids] if alone else ids
    tensor = torch.tensor([ids])
    with torch.no_grad():
        out = model.generate(
            tensor, attention_mask=torch.ones_like(tensor), **{"max_new_tokens": NEW} | options
        )[0].tolist()
    return out[len(ids) :] if alone else out[1:]


def common(pair, loaded):
    """Tokens that the model writes often: in the greedy answers, most frequent first."""
    plain = output(pair, loaded, {"eos_token_id": 4})
    answers = plain.answers(TEXTS, max_new_tokens=NEW)
    tokens, counts = np.unique(
        np.concatenate([item[0].tokens for item in answers]), return_counts=True
    )
    return [int(token) for token in tokens[np.argsort(-counts, kind="stable")]], answers


CASES = {
    "ends": lambda _, answers: {"eos_token_id": [4, *answers[0][0].tokens[4:7].tolist()]},
    "n-grams": lambda *_: {"no_repeat_ngram_size": 2, "repetition_penalty": 1.2},
    "ends and n-grams of beams": lambda often, _: {
        "no_repeat_ngram_size": 2,
        "num_beams": 3,
        "eos_token_id": [4, *often[1:3]],
        "length_penalty": 0.4,
        "early_stopping": True,
    },
    "bad words": lambda often, answers: {
        "bad_words_ids": [[often[0]], answers[0][0].tokens[2:5].tolist(), [4]],
        "suppress_tokens": often[3:4],
    },
    "bad words of beams": lambda often, answers: {
        "bad_words_ids": [answers[0][0].tokens[:2].tolist(), answers[1][0].tokens[1:4].tolist()],
        "num_beams": 2,
    },
    "first, last and at least": lambda often, answers: {
        "begin_suppress_tokens": [int(item[0].tokens[0]) for item in answers],
        "forced_eos_token_id": 4,
        "eos_token_id": [4, *often[:3]],
        "min_new_tokens": 6,
    },
    "forced in beams": lambda *_: {
        "forced_bos_token_id": 40,
        "begin_suppress_tokens": [41, 42],
        "forced_eos_token_id": 4,
        "eos_token_id": 4,
        "num_beams": 3,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_answers_are_those_of_transformers(pair, loaded, case):
    often, answers = common(pair, loaded)
    content = CASES[case](often, answers)
    if loaded.model.topology == "decoder":
        content.pop("forced_bos_token_id", None)  # means nothing behind a prompt
    ours = output(pair, loaded, content)
    changed = 0
    for text, before in zip(TEXTS, answers, strict=True):
        actual = ours.answers([text], max_new_tokens=NEW)[0][0].tokens.tolist()
        assert actual == theirs(pair, loaded, text)
        changed += actual != before[0].tokens.tolist()
    assert changed


def test_lengths_of_an_encoder_decoder_count_the_start_token(pair, loaded):
    if loaded.model.topology == "decoder":
        pytest.skip("there max_length counts the prompt, and is ignored")
    often, _ = common(pair, loaded)
    ours = output(pair, loaded, {"eos_token_id": often[:2], "min_length": 5, "max_length": 9})
    for text in TEXTS:
        actual = ours.answers([text])[0][0].tokens.tolist()
        assert actual == theirs(pair, loaded, text, max_new_tokens=None)
        assert 4 <= len(actual) <= 8


def test_ids_outside_the_vocabulary_are_ignored(pair, loaded):
    plain = output(pair, loaded, {}).answers(TEXTS, max_new_tokens=NEW)
    strange = {"bad_words_ids": [[5000], [-1, 4]], "suppress_tokens": [5000, -1]}
    for one, other in zip(
        output(pair, loaded, strange).answers(TEXTS, max_new_tokens=NEW), plain, strict=True
    ):
        np.testing.assert_array_equal(one[0].tokens, other[0].tokens)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_stops_inside_of_tokens_end_rows_as_in_transformers(pair, loaded, num_beams):
    tokenizer = transformers.AutoTokenizer.from_pretrained(pair[0])
    ours = output(pair, loaded, {"eos_token_id": 4})
    stopped = 0
    for text in TEXTS:
        whole = ours.answers([text], max_new_tokens=NEW, num_beams=num_beams)[0][0]
        letters = re.findall("[a-z]+", whole.text)
        if not letters:
            continue
        stop = letters[len(letters) // 2][-2:]
        options = {"max_new_tokens": NEW, "num_beams": num_beams}
        (answer,) = ours.answers([text], stop=[stop], **options)[0]
        beams = {"num_beams": num_beams, "stop_strings": [stop], "tokenizer": tokenizer}
        assert answer.tokens.tolist() == theirs(pair, loaded, text, **beams)
        assert stop not in answer.text
        if num_beams == 1:
            size = len(answer.tokens)
            (part,) = ours.answers([text], max_new_tokens=size)[0]
            assert answer.log_probability == pytest.approx(part.log_probability, rel=1e-5)
        stopped += len(answer.tokens) < len(whole.tokens)
    assert stopped


def test_options_that_are_chosen_go_before_the_files(pair, loaded):
    ours = output(pair, loaded, {"num_beams": 3, "no_repeat_ngram_size": 2, "max_new_tokens": 5})
    assert [len(item[0].tokens) <= 5 for item in ours.answers(TEXTS)] == [True, True]
    own = {"num_beams": 1, "no_repeat_ngram_size": None, "max_new_tokens": NEW}
    plain = output(pair, loaded, {}).answers(TEXTS, max_new_tokens=NEW)
    for one, other in zip(ours.answers(TEXTS, **own), plain, strict=True):
        np.testing.assert_array_equal(one[0].tokens, other[0].tokens)
    ours.generate(TEXTS, temperature=1.0, max_new_tokens=3)  # a file's search yields
    ours.generate(TEXTS, draft="prompt", max_new_tokens=3)


def test_ignored_fields_are_warned_of_once(pair, loaded):
    content = {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
        "encoder_no_repeat_ngram_size": 3,
    }
    ours = output(pair, loaded, content | {"use_cache": True, "num_return_sequences": 1})
    match = "ignored: do_sample = True, encoder_no_repeat_ngram_size = 3, temperature = 0.6, top_p"
    with pytest.warns(UserWarning, match=match):
        ours.generate(TEXTS, max_new_tokens=2)
    ours.generate(TEXTS, max_new_tokens=2)  # warnings are errors here


def test_a_number_out_of_range_names_the_file(pair, loaded):
    ours = output(pair, loaded, {"num_beams": 0})
    with pytest.raises(InputError, match=r"generation_config\.json .*num_beams = 0"):
        ours.generate(TEXTS)
    ours = output(pair, loaded, {"min_new_tokens": "5"})
    with pytest.raises(InputError, match=r"generation_config\.json .*min_new_tokens = '5'"):
        ours.generate(TEXTS)
