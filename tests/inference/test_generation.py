"""`generate` with its options, on tiny models of bytes whose weights are random."""

import dataclasses
import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import t5lite
from t5lite.data import Bytes
from t5lite.errors import InputError
from t5lite.inference import Engine, Loaded, expression
from t5lite.inference.functions import functions_of
from t5lite.inference.options import Options, options_of
from t5lite.interop import Description
from t5lite.models import Model, override
from t5lite.parallel import Layout, make_mesh

VOCABULARY = Bytes(num_sentinels=5)
SMALL = {
    "vocab": 384,  # more than the vocabulary's 264
    "embed": 16,
    "*.num_layers": 2,
    "*.blocks.*.attention.num_heads": 4,
    "*.blocks.*.attention.head_dim": 4,
    "*.blocks.*.mlp.hidden": 24,
}
CROSS = {
    "decoder.blocks.*.cross_attention.num_heads": 4,
    "decoder.blocks.*.cross_attention.head_dim": 4,
}
SPECS = {
    "encoder_decoder": override("t5_1_1_nano", SMALL | CROSS),
    "decoder": override("gpt_nano", SMALL | {"decoder.position_embedding.max_length": 96}),
    "encoder": override("bert_nano", SMALL | {"encoder.position_embedding.max_length": 32}),
}


def make(topology, *, seed=0, scale=0.5):
    model = Model(SPECS[topology])
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32),
        model.shapes(),
    )
    layout = Layout()
    mesh = make_mesh(layout, jax.devices()[:1])
    engine = Engine(model, VOCABULARY, layout, mesh)
    return Loaded(engine, params, Description(model.spec, VOCABULARY), folder="tiny")


@pytest.fixture(scope="module")
def writers():
    return {topology: make(topology) for topology in ("encoder_decoder", "decoder")}


@pytest.fixture(scope="module")
def decoder(writers):
    return writers["decoder"]


TEXTS = ["a cat", "sat", "on the mat with a hat", "o"]
FEW = {"max_new_tokens": 12}
both = pytest.mark.parametrize("topology", ["encoder_decoder", "decoder"])


# What comes out.


@both
@pytest.mark.light("decoder")
def test_options_differ_by_text_and_each_is_answered_as_if_alone(writers, topology):
    loaded = writers[topology]
    options = {
        "max_new_tokens": [5, 12, 7, 12],
        "temperature": [0.0, 0.5, 1.0, 1.5],
        "top_k": [None, 3, None, 20],
        "top_p": [None, None, 0.9, 0.5],
        "repetition_penalty": [None, 1.5, None, 3.0],
        "banned": [[], ["e", 40], [], ["a"]],
        "seed": [0, 1, 2, 3],
    }
    together = loaded.answers(TEXTS, **options)
    for row, text in enumerate(TEXTS):
        own = {name: values[row] for name, values in options.items()}
        # Draws depend on a text's number among the texts.
        alone = loaded.answers(["x"] * row + [text], **own)[-1]
        np.testing.assert_array_equal(together[row][0].tokens, alone[0].tokens)
        assert together[row][0].log_probability == pytest.approx(alone[0].log_probability, 1e-4)
        assert len(alone[0].tokens) <= own["max_new_tokens"]


@both
@pytest.mark.light("decoder")
def test_several_samples(writers, topology):
    loaded = writers[topology]
    drawn = loaded.generate(TEXTS[:2], **FEW, temperature=1.0, num_samples=3)
    assert [len(item) for item in drawn] == [3, 3]
    assert len({*drawn[0], *drawn[1]}) == 6
    beams = loaded.answers(TEXTS[:2], **FEW, num_beams=3, num_samples=2, length_penalty=[0.5, 1.0])
    for best, second in beams:
        assert best.score >= second.score
        assert not np.array_equal(best.tokens, second.tokens)
    (one,) = loaded.answers(TEXTS[1:2], **FEW, num_beams=3)[0]
    np.testing.assert_array_equal(one.tokens, beams[1][0].tokens)


def test_a_stop_ends_the_answer_and_the_loop(decoder):
    (whole,) = decoder.generate(["a cat"], max_new_tokens=24)
    stop = whole[5:7]
    ((answer,),) = decoder.answers(["a cat"], max_new_tokens=24, stop=[stop, "never written"])
    assert answer.text == whole[: whole.index(stop)]
    assert len(answer.tokens) == len(answer.text) + len(stop)
    pieces = list(decoder.stream("a cat", max_new_tokens=24, stop=stop))
    assert "".join(pieces) == answer.text


def test_choices(decoder):
    choices = ["yes", "no", "not at all"]
    answers = decoder.generate(TEXTS, **FEW, choices=choices)
    assert set(answers) <= set(choices)
    drawn = decoder.generate(["a"] * 32, **FEW, choices=choices, temperature=3.0)
    assert set(drawn) == set(choices)
    apart = decoder.generate(TEXTS[:2], **FEW, choices=[["up"], ["down", "left"]])
    assert apart[0] == "up"
    assert apart[1] in ("down", "left")


def test_forced_banned_and_least(decoder):
    (answer,) = decoder.generate(["a cat"], **FEW, forced="so ")
    assert answer.startswith("so ")
    (plain,) = decoder.generate(["a cat"], **FEW)
    (without,) = decoder.generate(["a cat"], **FEW, banned=[plain[0]])
    assert plain[0] not in without
    ((long,),) = decoder.answers(["a cat"], max_new_tokens=20, min_new_tokens=20)
    assert len(long.tokens) == 20


def test_a_custom_logits_processor(decoder):
    def only_x(logits, generated):
        assert generated.tokens.shape[0] == logits.shape[0]
        allowed = jnp.arange(logits.shape[1]) == VOCABULARY.encode("x")[0]
        return jnp.where(allowed[None], logits, -jnp.inf)

    assert decoder.generate(["a"], max_new_tokens=5, logits_fn=only_x) == ["xxxxx"]


@pytest.mark.slow
@both
def test_a_draft_changes_no_greedy_answer(writers, topology):
    loaded = writers[topology]
    noise = lambda leaf: leaf + 0.03 * jax.random.normal(jax.random.key(2), leaf.shape)  # noqa: E731
    other = dataclasses.replace(loaded, params=jax.tree.map(noise, loaded.params))
    expected = loaded.generate(TEXTS, **FEW)
    for draft in (other, make(topology, seed=3), "prompt"):
        assert loaded.generate(TEXTS, **FEW, draft=draft, draft_length=3) == expected
    options = FEW | {"temperature": 0.7, "num_samples": 2}
    drawn = loaded.generate(TEXTS[:2], **options, draft=other)
    assert drawn == loaded.generate(TEXTS[:2], **options, draft=other)
    assert [len(item) for item in drawn] == [2, 2]


def test_an_encoder_fills_its_gaps():
    loaded = make("encoder")
    gap = "<extra_id_0>"
    texts = [f"a {gap}at", f"{gap}{gap}{gap} sat"]
    filled = loaded.generate(texts)
    for text, actual in zip(texts, filled, strict=True):
        remaining = text.split(gap)
        assert len(actual.encode(errors="replace")) >= len(text) - len(gap) * text.count(gap)
        assert actual.startswith(remaining[0])
        assert actual.endswith(remaining[-1])
        assert gap not in actual
    one_by_one = loaded.answers(texts, refinement_steps=3)
    assert [len(item[0].tokens) for item in one_by_one] == [
        len(VOCABULARY.frame(VOCABULARY.encode(text.replace(gap, "x")))) for text in texts
    ]
    several = loaded.generate(texts, temperature=2.0, num_samples=4)
    assert len(set(several[1])) > 1


def test_a_beam_on_eight_devices_is_that_of_one(decoder):
    layout = Layout(mesh={"data": 2, "tensor": 2, "fsdp": 2})
    engine = dataclasses.replace(decoder.engine, layout=layout, mesh=make_mesh(layout))
    spread = dataclasses.replace(decoder, engine=engine)
    options = FEW | {"num_beams": 3}
    assert spread.generate(TEXTS, **options) == decoder.generate(TEXTS, **options)


def test_new_numbers_compile_nothing(decoder, monkeypatch):
    traces, extend = [], Model.extend

    def counted(self, params, tokens, cache):
        traces.append(tokens.shape)
        return extend(self, params, tokens, cache)

    monkeypatch.setattr(Model, "extend", counted)
    functions_of.cache_clear()
    loaded = dataclasses.replace(decoder)  # with no compiled functions yet
    for most, heat, top, stop in ((16, 1.0, 5, "ab"), (9, 0.3, 2, "c"), (16, 2.0, 90, "fg")):
        options = {"temperature": heat, "top_k": top, "stop": [stop], "seed": top}
        loaded.generate(["a" * most], max_new_tokens=most, **options)
    assert len(traces) <= 2  # the loop's body may be traced twice


def test_the_example_of_the_documentation_runs(writers, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "generate.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (code,) = (block for block in blocks if "model.stream(" in block)
    monkeypatch.setattr(t5lite, "load", lambda folder: writers["encoder_decoder"])
    exec(code, {})
    assert float(capsys.readouterr().out.split()[0]) > 1


# What is refused.


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temprature": 1.0}, "did you mean.*temperature"),
        (
            {"top_k": 5},
            "top_k = 5: has no effect without temperature; set temperature",
        ),
        ({"temperature": 1.0, "top_p": 0.0}, r"top_p = 0.0: must be in \(0, 1\]"),
        ({"temperature": 1.0, "top_k": 0}, "top_k = 0: must be a whole number of at least 1"),
        ({"temperature": 1.0, "num_beams": 2}, "beam search draws no samples; leave one out"),
        ({"num_samples": 2}, "num_samples = 2: greedy samples are equal"),
        ({"length_penalty": 2.0}, "length_penalty = 2.0: has no effect without num_beams; set"),
        ({"num_beams": 500}, "num_beams = 500, more than the vocabulary's 384"),
        ({"min_new_tokens": 99}, "min_new_tokens = 99 is more than max_new_tokens = 12"),
        ({"choices": ["a"], "forced": "b"}, "choices and forced"),
        ({"choices": ["a" * 20]}, "choices is 21 tokens long, max_new_tokens = 12"),
        ({"choices": ["ab"], "banned": ["b"]}, "banned and choices both have"),
        ({"banned": ["ab"]}, "banned 'ab' is 2 tokens"),
        ({"banned": [999]}, r"banned 999: ids are 0..263"),
        ({"stop": [""]}, r"stop = \[''\]: must be a list of texts, none of them empty"),
        ({"temperature": [1.0, 2.0]}, "temperature has 2 values for 1 texts"),
        ({"draft": "promt"}, "draft = 'promt': must be a loaded model, or 'prompt'"),
        ({"draft": "prompt", "num_beams": 2}, "beam search takes no draft"),
        ({"prompt": "inputz"}, "did you mean.*inputs"),
        ({"refinement_steps": 0}, "refinement_steps = 0"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_options_that_cannot_be(decoder, options, expected):
    with pytest.raises(InputError, match=expected):
        decoder.generate(["a cat"], **(FEW | options))


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("", {}, r"texts\[1\]: the text is empty"),
        (3, {}, r"texts\[1\]: 3 is not a text"),
        ("a" * 90, {}, "a text of 90 tokens, and 12 new ones: the model takes 96; shorten it or"),
        (
            "a",
            {"max_new_tokens": 96},
            "max_new_tokens: 96 new tokens and a text of at least 1; the model takes 96",
        ),
    ],
)
def test_texts_that_cannot_be(decoder, text, options, expected):
    with pytest.raises(InputError, match=expected):
        decoder.generate(["a", text], **(FEW | options))


def test_models_that_cannot(decoder):
    encoder = make("encoder")
    with pytest.raises(InputError, match="the text has no mask token; put <extra_id_0> where"):
        encoder.generate(["a cat"])
    with pytest.raises(InputError, match="forced is not supported by encoders"):
        encoder.generate(["a <extra_id_0>"], forced="b")
    with pytest.raises(InputError, match="draft is not supported by encoders"):
        encoder.generate(["a <extra_id_0>"], draft="prompt")
    with pytest.raises(InputError, match="the draft is encoder_decoder, the model decoder"):
        decoder.generate(["a"], draft=make("encoder_decoder"))
    other = dataclasses.replace(
        decoder, engine=dataclasses.replace(decoder.engine, vocabulary=Bytes(num_sentinels=7))
    )
    with pytest.raises(InputError, match="the draft has another vocabulary"):
        decoder.generate(["a"], draft=other)


def test_a_stop_may_begin_and_end_inside_tokens(decoder, monkeypatch):
    """It may be a part of the text of other tokens; what no token has is refused."""
    monkeypatch.setattr(VOCABULARY, "unk_id", 2)
    monkeypatch.setattr(VOCABULARY, "encode", lambda text: [2 if c in ">é" else 70 for c in text])
    for stop in (">", "é"):  # in <extra_id_0>, and two bytes
        assert decoder.generate(["a"], stop=[stop], max_new_tokens=2)
    monkeypatch.setattr(expression, "token_texts", lambda *_, **__: [b"a"] * VOCABULARY.size)
    with pytest.raises(InputError, match="stop 'é': the vocabulary cannot express it"):
        decoder.generate(["a"], stop=["é"])


def test_options_of_each_text():
    shared = options_of({"stop": "a", "banned": ["b", 3]}, 2)
    assert shared == [Options(stop=("a",), banned=("b", 3))] * 2
    apart = options_of({"stop": [["a"], []], "top_k": [None, 3], "temperature": 1.0}, 2)
    assert apart == [
        Options(stop=("a",), temperature=1.0),
        Options(top_k=3, temperature=1.0),
    ]


@pytest.mark.parametrize("method", [Loaded.generate, Loaded.answers, Loaded.stream])
def test_signatures_list_the_options(method):
    parameters = inspect.signature(method).parameters
    options = {field.name: field for field in dataclasses.fields(Options)}
    assert options.keys() | {"fill", "prompt", "truncate", "draft", "draft_length"} < {*parameters}
    assert {name: parameters[name].default for name in options} == {
        name: field.default for name, field in options.items()
    }
    kinds = {parameter.kind for parameter in parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds


def test_infer_is_public():
    assert t5lite.infer.__module__ == "t5lite.inference.line_job"
    assert "infer" in dir(t5lite)
