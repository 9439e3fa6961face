"""`predict`: every head on every topology that it trains on says what training measures."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saved_models import save_model
from small_folders import add_tokenizer, copied

import t5lite
from t5lite import layers
from t5lite.data import Answer, Bytes, Class, FileData, Number, Tags
from t5lite.data.input_format import InputFormat
from t5lite.errors import InputError
from t5lite.inference.predict import HEADS, Predictor
from t5lite.inference.predictions import Answers, AnswerSpan, Classes, Numbers
from t5lite.inference.text_spans import likeliest
from t5lite.models import Model, ModelSpec, StackSpec, TransformerBlockSpec, override
from t5lite.objectives import AnswerSpans, Classification, Regression, TokenLabels, bind

TOPOLOGIES = ("encoder", "decoder")
LENGTH = 24
HEAD = {
    "classification": layers.ClassificationHeadSpec(num_classes=3),
    "regression": layers.RegressionHeadSpec(num_targets=2, pooling="last"),
    "token_labels": layers.TokenLabelsHeadSpec(num_labels=3),
    "spans": layers.SpansHeadSpec(),
}
OBJECTIVE = {
    "classification": Classification(),
    "regression": Regression(),
    "token_labels": TokenLabels(),
    "spans": AnswerSpans(),
}
FEATURES = {
    "classification": {"inputs": "{title}. {body}", "labels": Class("stars")},
    "regression": {"inputs": "{title}. {body}", "labels": Number(["x", "y"])},
    "token_labels": {"inputs": Tags("words", "tags")},
    "spans": {"inputs": Answer("{title}? {body}", "answer")},
}


def spec_of(topology, heads):
    attention = layers.AttentionSpec(2, 8)
    stack = StackSpec(
        1,
        (TransformerBlockSpec(attention, layers.MlpSpec(32, "relu")),),
        causal=topology == "decoder",
        position_bias=layers.RelativeBiasSpec(),
    )
    return ModelSpec(family="test", vocab=384, embed=16, heads=heads, **{topology: stack})


def params_of(spec, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.5, Model(spec).shapes()
    )


@pytest.fixture(scope="module")
def rows():
    """Rows of every head, some of them too long, with letters of several bytes."""
    rng = np.random.default_rng(0)
    created = []
    for number in range(24):
        words = [
            "".join(rng.choice([*"abcé長"], rng.integers(1, 5))) for _ in range(1 + number % 8)
        ]
        created.append(
            {
                "title": f"t{number}",
                "body": " ".join(words),
                "stars": ["bad", "fair", "good"][number % 3],
                "x": number / 7,
                "y": -number,
                "words": words,
                "tags": [["A", "B", "C"][rng.integers(3)] for _ in words],
                "answer": words[rng.integers(len(words))] if number % 4 else "",
            }
        )
    return created


@functools.cache
def model_of(topology, kind):
    return Model(spec_of(topology, (HEAD[kind],)))


def open_run(folder, rows, topology, kind):
    """Returns a saved model of random parameters, its objective, and data of the rows."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = FileData(
        str(path),
        features=FEATURES[kind],
        vocab=Bytes(125),
        validation_files=str(path.with_name("held-out.jsonl")),
        lengths={"inputs": LENGTH},
        batch_size=len(rows),
        pack=False,
    )
    path.with_name("held-out.jsonl").write_text(path.read_text())
    model = model_of(topology, kind)
    save_model(
        folder / "run",
        model,
        params_of(model.spec),
        vocabulary=Bytes(125),
        labels=data.labels(),
        inputs=data.input_format(),
    )
    loaded = t5lite.load(folder / "run", devices=jax.devices()[:1])
    return loaded, bind(OBJECTIVE[kind], model), data


def metrics_of(loaded, objective, data):
    """Returns what evaluation measures, and what the head says of each row in its batch."""
    (batch,) = list(data.validation_batches(objective))
    batch = {name: jnp.asarray(rows) for name, rows in batch.items()}
    _, metrics = objective.loss(loaded.model, loaded.params, batch)
    output, _ = objective.output(loaded.model, loaded.params, batch)
    means = {name: float(total / weight) for name, (total, weight) in metrics.items()}
    return means, np.asarray(output), batch


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("kind", HEADS)
def test_predictions_equal_evaluation(tmp_path, rows, topology, kind):
    loaded, objective, data = open_run(tmp_path, rows, topology, kind)
    metrics, output, batch = metrics_of(loaded, objective, data)
    actual = loaded.predict(rows, batch_size=5)
    frame = Bytes().frame.size
    texts = {"classification": "{title}. {body}", "regression": "{title}. {body}"}
    texts |= {"token_labels": "{words}", "spans": "{title}? {body}"}
    sizes = [len(t5lite.data.Template(texts[kind]).render(row).encode()) for row in rows]
    cut = [max(size + frame - LENGTH, 0) for size in sizes]
    assert [item.num_cut for item in actual] == cut
    assert 0 < sum(item > 0 for item in cut) < len(rows)
    if kind == "classification":
        right = [item.label == row["stars"] for item, row in zip(actual, rows, strict=True)]
        assert np.mean(right) == pytest.approx(metrics["accuracy"])
        shares = jax.nn.softmax(output)
        assert sorted(item.probability for item in actual) == pytest.approx(
            sorted(shares.max(-1).tolist()), rel=1e-4
        )
        for item in actual:
            assert [name for name, _ in item.classes[:1]] == [item.label]
            assert sum(share for _, share in item.classes) == pytest.approx(1)
    elif kind == "regression":
        errors = [
            np.mean(np.square(np.subtract(item.values, [row["x"], row["y"]])))
            for item, row in zip(actual, rows, strict=True)
        ]
        assert np.mean(errors) == pytest.approx(metrics["mse"], rel=1e-4)
        assert actual[0].record()["values"].keys() == {"x", "y"}
    elif kind == "token_labels":  # none is "O", so that every word is a span
        right = [
            span.tag == tag
            for item, row in zip(actual, rows, strict=True)
            for span, tag in zip(item.spans, row["tags"], strict=False)
        ]
        assert len(right) == int(batch["token_weights"].sum())
        assert np.mean(right) == pytest.approx(metrics["accuracy"])
        for item, row in zip(actual, rows, strict=True):
            words = [span.text for span in item.spans]
            assert words == row["words"][: len(words)]
            assert len(words) == len(row["words"]) or item.num_cut
    else:
        # Rows of the batch are in another order: known by their answers' places and lengths.
        valid = np.asarray(objective.valid(batch))
        tokens = {
            bytes(ids[ok].astype(np.uint16)): output[at]
            for at, (ids, ok) in enumerate(
                zip(np.asarray(batch[f"{topology}_input_tokens"]), valid, strict=True)
            )
        }
        predictor = Predictor(loaded)
        for item, row in zip(actual, rows, strict=True):
            request = predictor.read(row)
            logits = tokens[bytes(np.array(request.ids, np.uint16))][: len(request.ids)]
            begin = len(f"{row['title']}? ".encode())
            inside = range(begin, len(request.ids) - frame)
            places, none = likeliest(logits, inside, max_length=30, count=1, no_answer=True)
            assert item.no_answer == pytest.approx(none, rel=1e-3)
            best = item.answers[0]
            assert best.probability == pytest.approx(places[0].probability, rel=1e-3)
            assert best.text == row["body"][best.start : best.end]
            ids = request.ids[places[0].first : places[0].last + 1]
            assert Bytes().decode(ids).strip() in best.text  # bytes may begin within a letter


def test_spans_hold_their_text(tmp_path):
    """Tags and answers of texts with spaces, marks and letters of several bytes."""
    heads = (HEAD["token_labels"], HEAD["spans"])
    folder = add_tokenizer(tmp_path / "hf")
    vocabulary = t5lite.data.open_vocabulary(folder / "tokenizer.json")
    labels = {"labels": ["O", "B-X", "I-X"]}
    rng = np.random.default_rng(1)
    texts = ["  a  b.\n\tc", "x", " ", "(éa長東b),c "]
    texts += ["".join(rng.choice([*"ab,é 長."], 18)) for _ in range(30)]
    for name, vocab in ("bytes", Bytes(125)), ("pieces", vocabulary):
        spec = spec_of("encoder", heads)
        run = tmp_path / name
        save_model(run, spec, params_of(spec, 3), vocabulary=vocab, labels=labels)
        loaded = t5lite.load(run, devices=jax.devices()[:1])
        spans = []
        for aggregation in ("first", "simple"):
            actual = loaded.predict(texts, head="token_labels", aggregation=aggregation)
            for text, item in zip(texts, actual, strict=True):
                assert item.text == text
                ends = [0, *(span.end for span in item.spans)]
                for span, end in zip(item.spans, ends, strict=False):
                    # Several tokens may lie within one letter.
                    assert end - (aggregation == "simple") <= span.start < span.end
                    assert text[span.start : span.end] == span.text == span.text.strip()
                    assert (span.tag, 0 < span.probability <= 1) == ("X", True)
                spans += item.spans
        assert len(spans) > 20
        for text, item in zip(texts, loaded.predict(texts, head="spans"), strict=True):
            assert item.no_answer is None  # nobody trained it to say so
            for answer in item.answers:
                assert text[answer.start : answer.end] == answer.text == answer.text.strip() != ""


def test_the_template_goes_to_hugging_face_and_back(tmp_path, rows):
    changes = {
        "vocab": 384,
        "embed": 16,
        "encoder.num_layers": 1,
        "*.blocks.*.attention.num_heads": 2,
        "*.blocks.*.attention.head_dim": 8,
        "*.blocks.*.mlp.hidden": 16,
        "heads": [layers.SpansHeadSpec()],
    }
    spec = override("bert_nano", changes)
    vocabulary = t5lite.data.open_vocabulary(add_tokenizer(tmp_path / "v") / "tokenizer.json")
    inputs = InputFormat("{title}? {body}", "context", 20)
    parts = {"vocabulary": vocabulary, "inputs": inputs}
    for kind in ("t5lite", "huggingface"):
        save_model(tmp_path / kind, spec, params_of(spec), kind=kind, **parts)
    ours, theirs = (
        t5lite.load(tmp_path / kind, devices=jax.devices()[:1])
        for kind in ("t5lite", "huggingface")
    )
    assert theirs.inputs == inputs
    for one, other in zip(ours.predict(rows[:4]), theirs.predict(rows[:4]), strict=True):
        assert one.num_cut == other.num_cut
        assert one.no_answer == pytest.approx(other.no_answer)
        assert [item[:3] for item in map(dataclasses.astuple, one.answers)] == [
            item[:3] for item in map(dataclasses.astuple, other.answers)
        ]


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A model with every head, of which nothing is known but its parameters."""
    spec = spec_of("encoder", tuple(HEAD.values()))
    folder = tmp_path_factory.mktemp("models") / "several"
    save_model(folder, spec, params_of(spec), vocabulary=Bytes(125))
    return t5lite.load(folder, devices=jax.devices()[:1])


def test_labels_without_names_are_numbers(several):
    (actual,) = several.predict(["abc"], head="classification", top_k=2)
    assert {type(name) for name, _ in actual.classes} == {int}
    assert len(actual.classes) == 2
    (actual,) = several.predict(["abc"], head="regression")
    assert len(actual.record()["values"]) == 2


def test_rows_are_rendered_as_in_training_or_by_the_template(tmp_path, several):
    loaded = dataclasses.replace(
        several,
        description=several.description.replace(inputs=InputFormat("{title}: {body}", length=12)),
    )
    read = functools.partial(Predictor, loaded, head="classification")

    def text(row, **options):
        return Bytes().decode(read(**options).read(row).ids)

    assert text({"title": "a", "body": "b"}) == "a: b"
    assert text({"title": "a", "text": "b"}) == "b"
    assert text({"inputs": "c", "text": "b"}) == "c"
    assert text("a {text} as it is"[:11]) == "a {text} as"
    assert text("d", template="say {text}") == "say d"
    assert text({"title": "a", "body": "b"}, template="{body}") == "b"
    assert len(read().read("a" * 50).ids) == 12
    assert read().read("a" * 50).num_cut == 39
    assert len(read(max_length=30).read("a" * 50).ids) == 30
    short = dataclasses.replace(
        several, description=several.description.replace(inputs=InputFormat("{title}", length=1))
    )
    with pytest.raises(InputError, match="a text of 3 tokens: the model takes 1"):
        Predictor(short, head="regression").read("ab")
    for row, options, message in [
        ({"title": "a"}, {}, "nor what training read, '{title}: {body}'; there is 'title'"),
        ({"text": 3}, {}, "'text' is 3, not a text"),
        ({"text": "a"}, {"template": "{b}"}, "column 'b' is missing"),
        (3, {}, "3 is neither a text nor a row of columns"),
    ]:
        with pytest.raises(InputError) as raised:
            read(**options).read(row)
        assert message in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "head: the model has classification, regression, token_labels, spans; name one"),
        ({"head": "embedding"}, "unknown head of"),
        ({"top_k": 0}, "top_k = 0: must be"),
        ({"max_length": 1}, "max_length = 1: must be at least 2"),
        ({"max_answer_length": 0}, "max_answer_length = 0: must be"),
        ({"aggregation": "max"}, "unknown aggregation 'max'; known: first, simple"),
    ],
)
def test_mistakes(several, options, message):
    options = options if not options or "head" in options else {"head": "spans"} | options
    with pytest.raises(InputError) as raised:
        several.predict(["a"], **options)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("t5_1_1", "an encoder-decoder without a predicting head"),
        ("gpt2", "its head 'lm' is for `generate` and `score`"),
        ("bert_base_model", "its head 'pooler' is for `embed`"),
    ],
)
def test_errors_of_missing_heads_name_the_alternatives(tmp_path, case, message):
    folder = add_tokenizer(copied(case, tmp_path / case))
    with pytest.raises(InputError) as raised:
        t5lite.load(folder, devices=jax.devices()[:1]).predict(["a"])
    assert message in str(raised.value)
    assert len(str(raised.value).splitlines()) <= 5


def test_numbers_that_are_not_finite_are_errors_of_their_row(several, monkeypatch):
    def outputs(params, batch):
        values = np.zeros((len(batch["encoder_input_tokens"]), 3), np.float32)
        return np.where(batch["encoder_segment_ids"].sum(1)[:, None] > 4, np.nan, values)

    monkeypatch.setattr("t5lite.inference.predict.compiled", lambda *_, **__: outputs)
    with pytest.raises(InputError, match=r"texts\[1\]: the numbers of the classification head"):
        several.predict(["a", "a long one"], head="classification")


def test_records():
    assert Classes((("a", 0.75), ("b", 0.25))).record() == {
        "label": "a",
        "probability": 0.75,
        "classes": [
            {"label": "a", "probability": 0.75},
            {"label": "b", "probability": 0.25},
        ],
    }
    assert Numbers((1.5,), num_cut=2).record() == {"value": 1.5, "num_cut": 2}
    span = AnswerSpan("x", 0, 1, 0.25)
    assert Answers((span,), 0.5).record() == {
        "answer": None,
        "no_answer": 0.5,
        "answers": [{"text": "x", "start": 0, "end": 1, "probability": 0.25}],
    }
    assert Answers((span,), 0.125).best == Answers((span,)).best == span
    assert Answers((), None).record() == {"answer": None, "answers": []}
