"""One framing of a text: what is trained on is what is embedded, scored and answered.

A row of the table is a form of tokenizer, and says how transformers frames its texts and labels.
"""

import json

import jax
import numpy as np
import pytest
from saved_models import save_model

from t5lite.data import Bytes, HuggingFaceTokenizer, train_sentencepiece
from t5lite.errors import InputError
from t5lite.experiment.start import check_prompts
from t5lite.framing import Frame
from t5lite.inference import Engine, Loaded, load
from t5lite.inference.embedding import Embedder
from t5lite.inference.request import Request
from t5lite.inference.scoring import Scorer
from t5lite.interop import Description
from t5lite.interop.prompts import read_prompts, save_prompts
from t5lite.models import Model, override
from t5lite.objectives import (
    AnswerSpans,
    CausalLM,
    Classification,
    Contrastive,
    MaskedLM,
    PrefixLM,
    Prompts,
    Regression,
    Seq2Seq,
    SpanCorruption,
    TokenLabels,
    bind,
)
from t5lite.parallel import Layout, make_mesh

tokenizers = pytest.importorskip("tokenizers")

TEXT, TARGET = "a cat sat on the mat", "the cat"
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "[MASK]", "en_XX"]
FORMS = {  # the template, what it puts before and after a text, and around the labels
    "llama": ("<s> $A", ["<s>"], [], ["<s>"]),
    "gpt2": (None, [], [], []),
    "bert": ("<s> $A </s>", ["<s>"], ["</s>"], ["<s>"]),  # [CLS] and [SEP]
    "bart": (("</s>", "<s>"), ["<s>"], ["</s>"], ["<s>"]),
    "opt": ("</s> $A", ["</s>"], [], ["</s>"]),
    "mbart": ("$A </s> en_XX", [], ["</s>", "en_XX"], []),
    "mbart50": ("en_XX $A </s>", ["en_XX"], ["</s>"], ["en_XX"]),
    "t5": ("$A </s>", [], ["</s>"], []),
}


def tokenizer_of(template):
    """A tokenizer of words with a form's template; None: GPT-2's, which adds nothing."""
    ids = {piece: number for number, piece in enumerate([*SPECIAL, *sorted({*TEXT.split()})])}
    created = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, "<unk>"))
    created.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    created.add_special_tokens(SPECIAL)
    processors = tokenizers.processors
    if template is None:
        created.post_processor = processors.ByteLevel()
    elif isinstance(template, tuple):
        created.post_processor = processors.RobertaProcessing(*((t, ids[t]) for t in template))
    else:
        special = [(token, ids[token]) for token in SPECIAL]
        created.post_processor = processors.TemplateProcessing(template, None, special)
    return created


@pytest.fixture(scope="module", params=[*FORMS, "bytes", "sentencepiece"])
def form(request, tmp_path_factory):
    """A vocabulary, its frame, and the tokens before labels."""
    if request.param == "bytes":
        return Bytes(num_sentinels=9), Frame(after=(1,)), ()
    if request.param == "sentencepiece":
        texts, folder = [TEXT * 9, TARGET], tmp_path_factory.mktemp("vocabulary")
        trained = train_sentencepiece(texts, 110, num_sentinels=9, cache_folder=folder)
        return trained, Frame(after=(1,)), ()
    template, before, after, labels = FORMS[request.param]
    created = tokenizer_of(template)
    vocabulary = HuggingFaceTokenizer.from_json(created.to_str(), request.param, num_sentinels=9)
    assert (
        vocabulary.frame(vocabulary.encode(TEXT)) == created.encode(TEXT).ids
    )  # transformers' own
    numbers = [tuple(map(created.token_to_id, tokens)) for tokens in (before, after, labels)]
    return vocabulary, Frame(*numbers[:2]), numbers[2]


PRESETS = {"encoder": "bert_nano", "decoder": "llama_nano", "encoder_decoder": "t5_1_1_nano"}


def model_of(topology, start_id=0):
    return Model(override(PRESETS[topology], {"vocab": 512, "start_id": start_id}))


def loaded_with(model, vocabulary, prompts=None):
    layout = Layout()
    mesh = make_mesh(layout, jax.devices()[:1])
    engine = Engine(model, vocabulary, layout, mesh)
    return Loaded(engine, None, Description(model.spec, prompts=prompts))


def read_ids(loaded, **options):
    return Request.from_text(TEXT, loaded.reader(**options)).ids


def prepared(objective, vocabulary, **example):
    """What an objective makes of a text, and of any further features."""
    texts = {"inputs": TEXT, "targets": TEXT}
    example = {name: np.array(vocabulary.encode(texts[name])) for name in texts} | example
    (actual,) = objective.prepare(
        iter([example]),
        lengths={"inputs": 40, "targets": 40},
        vocabulary=vocabulary,
        rng=np.random.default_rng(0),
    )
    return {name: array.tolist() for name, array in actual.items()}


@pytest.mark.parametrize("topology", ["encoder", "decoder"])
def test_embeddings_are_framed_as_in_training(form, topology):
    vocabulary, frame, _ = form
    assert vocabulary.frame == frame
    ids = vocabulary.encode(TEXT)
    framed = [*frame.before, *ids, *frame.after]
    reader = Embedder(loaded_with(model_of(topology), vocabulary))
    assert reader.read(TEXT).ids == vocabulary.frame(ids) == framed
    options = {"topology": topology}
    labels = {
        Classification(**options): [1],
        Regression(**options): [0.5],
        TokenLabels(**options): [*range(len(ids))],
        AnswerSpans(**options): [1, 2],
        Contrastive(**options): [],
    }
    for objective, item in labels.items():
        actual = prepared(objective, vocabulary, labels=np.array(item))
        assert actual["inputs"] == framed
        first = len(frame.before)
        if isinstance(objective, Contrastive):
            assert actual["targets"] == framed
        if isinstance(objective, TokenLabels):
            assert actual["labels"][first : first + len(ids)] == item
            assert set(actual["labels"][:first] + actual["labels"][first + len(ids) :]) <= {-1}
        if isinstance(objective, AnswerSpans):
            assert actual["labels"] == [first + 1, first + 2]


def test_scores_of_an_encoder_are_framed_as_in_training(form):
    vocabulary, _, _ = form
    actual = prepared(MaskedLM(), vocabulary)
    predicted = np.array(actual["predicted"])
    assert predicted.any()
    assert np.array_equal(
        np.array(actual["inputs"])[~predicted], np.array(actual["targets"])[~predicted]
    )
    loaded = loaded_with(model_of("encoder"), vocabulary)
    question = Scorer(loaded).read(TEXT)
    assert actual["targets"] == question.inputs == vocabulary.frame(vocabulary.encode(TEXT))
    assert question.tokens == vocabulary.encode(TEXT)
    first, last = question.scored[0], question.scored[-1]
    assert not predicted[:first].any()
    assert not predicted[last + 1 :].any()


def starts(vocabulary, frame):
    """The start tokens of interest: another than the frame's, and its own."""
    return {0, *frame.before[:1]}


@pytest.mark.parametrize("make", [Seq2Seq, PrefixLM, SpanCorruption])
@pytest.mark.parametrize("topology", ["decoder", "encoder_decoder"])
def test_prompts_are_framed_as_in_training(form, topology, make, tmp_path):
    """The run's own record says how: what a model reads and writes is what it was trained on."""
    vocabulary, frame, labels = form
    for start_id in starts(vocabulary, frame):
        model = model_of(topology, start_id)
        objective = bind(make(), model)
        (pair,) = objective.pairs(
            iter([{name: np.array(vocabulary.encode(TEXT)) for name in ("inputs", "targets")}]),
            lengths={"inputs": 40, "targets": 40},
            vocabulary=vocabulary,
            rng=np.random.default_rng(0),
        )
        inputs, targets = (pair[name].tolist() for name in ("inputs", "targets"))
        save_prompts(tmp_path, objective.prompts(vocabulary))
        prompts_read = read_prompts(tmp_path, vocabulary, topology=topology)
        assert prompts_read == objective.prompts(vocabulary)
        loaded = loaded_with(model, vocabulary, prompts_read)
        scorer, prompt = Scorer(loaded), loaded.prompts.of(None)
        # The texts of both sides, without what is around them.
        text = inputs[len(prompt.inputs.before) : len(inputs) - len(prompt.inputs.after)]
        generated = targets[len(prompt.targets.before) : len(targets) - len(prompt.targets.after)]
        assert prompt.inputs(text) == inputs
        assert prompt.targets(generated) == targets
        assert targets[-1] == vocabulary.eos_id
        if make is Seq2Seq:
            answered = read_ids(loaded)
            scored = scorer.read(TEXT, TEXT)
            assert answered == inputs
            assert scored.tokens == targets
            if topology == "decoder":
                assert scored.targets == [*inputs, *targets]
                own = frame.read_after(start_id)
                assert inputs == own(vocabulary.encode(TEXT))
                assert targets == [*vocabulary.encode(TEXT), vocabulary.eos_id]
            else:
                assert scored.inputs == inputs == frame(vocabulary.encode(TEXT))
                begins = labels[1:] if labels[:1] == (start_id,) else labels
                assert targets == [*begins, *vocabulary.encode(TEXT), vocabulary.eos_id]
        if make is PrefixLM:
            assert text == inputs
            assert inputs + generated == vocabulary.encode(TEXT)


def test_a_text_that_a_model_continues_has_no_frame(form):
    vocabulary, _, _ = form
    model = model_of("decoder")
    loaded = loaded_with(model, vocabulary, bind(CausalLM(), model).prompts(vocabulary))
    ids = vocabulary.encode(TEXT)
    assert read_ids(loaded) == ids
    assert Scorer(loaded).read(TEXT).targets == ids
    actual = prepared(CausalLM(), vocabulary)
    assert actual["targets"] == [*ids, vocabulary.eos_id]


def test_truncation_leaves_room_for_the_frame(form):
    vocabulary, frame, _ = form
    ids = vocabulary.encode(TEXT)
    for room in range(max(frame.size, 1), len(ids) + frame.size):
        remaining = ids[: room - frame.size]
        for cut in (frame(ids, room), frame(np.array(ids), room).tolist()):
            assert cut == [*frame.before, *remaining, *frame.after]
            assert len(cut) == room
    room = frame.size + 3
    lengths = {"inputs": room, "targets": 40}
    (actual,) = Classification().prepare(
        iter([{"inputs": np.array(ids), "labels": np.array([0])}]),
        lengths=lengths,
        vocabulary=vocabulary,
        rng=np.random.default_rng(0),
    )
    reader = Embedder(loaded_with(model_of("encoder"), vocabulary), max_length=room, truncate=True)
    assert actual["inputs"].tolist() == reader.read(TEXT).ids


def test_a_text_is_shown_without_its_frame(form):
    vocabulary, _, _ = form
    ids = vocabulary.encode(TEXT)
    for framed in (vocabulary.frame(ids), vocabulary.target_frame(ids)):
        assert vocabulary.decode(framed) == vocabulary.decode(ids)


# --- recorded with the run ------------------------------------------------------------------------

TINY = {
    "vocab": 64,
    "start_id": 1,
    "embed": 8,
    "*.num_layers": 2,
    "*.blocks.*.attention.num_heads": 2,
    "*.blocks.*.attention.num_kv_heads": 2,
    "*.blocks.*.attention.head_dim": 4,
    "*.blocks.*.mlp.hidden": 8,
}


def test_a_saved_run_is_prompted_as_it_was_trained(tmp_path):
    """LLaMA's template adds nothing after the start token: kinds of prompts differ by direction."""
    vocabulary = HuggingFaceTokenizer.from_json(tokenizer_of("<s> $A").to_str(), "llama")
    model = Model(override("llama_nano", TINY))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), model.shapes()
    )
    objective = bind(Seq2Seq(bidirectional_inputs=True), model)
    prompts = objective.prompts(vocabulary)
    save_model(tmp_path, model, params, vocabulary=vocabulary, prompts=prompts)
    layout = Layout(compiler_options={"cpu": {"xla_backend_optimization_level": 0}})
    loaded = load(tmp_path, layout=layout, devices=jax.devices()[:1])
    assert loaded.prompts == prompts
    (own,), (prefix,), (continued,) = (
        loaded.answers([TEXT], max_new_tokens=1, **options)[0]
        for options in ({}, {"prompt": "prefix"}, {"prompt": "continue"})
    )
    assert own.log_probability == prefix.log_probability
    assert abs(own.log_probability - continued.log_probability) > 1e-3


def test_a_run_without_a_record_is_read_as_before(form, tmp_path):
    vocabulary, frame, _ = form
    ended = Frame(after=(vocabulary.eos_id,))
    model = model_of("decoder")
    before = read_prompts(tmp_path, vocabulary, topology="decoder")
    loaded = loaded_with(model, vocabulary, before)
    ids = vocabulary.encode(TEXT)
    assert read_ids(loaded) == ids
    assert read_ids(loaded, prompt="inputs") == [*ids, vocabulary.eos_id]
    assert loaded.prompts.of("inputs").bidirectional
    assert not loaded.prompts.of(None).bidirectional
    both = read_prompts(tmp_path, vocabulary, topology="encoder_decoder")
    assert (both.inputs, both.targets) == (frame, ended)
    # It goes on only as it began; other libraries' models are causal.
    check_prompts(bind(Seq2Seq(bidirectional_inputs=True), model), before, where="the run")
    check_prompts(bind(CausalLM(), model), before, where="the run")
    with pytest.raises(InputError, match=r"bidirectional_inputs = True to go on"):
        check_prompts(bind(Seq2Seq(), model), before, where="the run")
    assert bind(Seq2Seq(), model).prompted(before).bidirectional_inputs  # as it is evaluated
    assert not loaded_with(model, vocabulary).prompts.of("inputs").bidirectional


@pytest.mark.parametrize(
    ("change", "message"),
    [({"kind": "question"}, "upgrade t5lite"), ({"inputs": {}}, "damaged"), ({"format": 2}, "2")],
)
def test_a_record_that_cannot_be_read_is_named(change, message, tmp_path):
    save_prompts(tmp_path, Prompts("inputs", Frame(), Frame(after=(1,))))
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        read_prompts(tmp_path, None, topology="decoder")


def test_eos_of_a_task_is_recorded(form):
    """`seqio.Feature.add_eos`: neither an EOS between inputs and targets, nor one that ends."""
    vocabulary, _, _ = form
    ids, eos = vocabulary.encode(TEXT), (vocabulary.eos_id,)
    for topology in ("decoder", "encoder_decoder"):
        model = model_of(topology)
        objective = bind(Seq2Seq(add_eos={"inputs": False, "targets": True}), model)
        loaded = loaded_with(model, vocabulary, objective.prompts(vocabulary))
        assert read_ids(loaded) == ids
        assert Scorer(loaded).read(TEXT, TEXT).tokens == [*ids, *eos]
        objective = bind(Seq2Seq(add_eos={"inputs": True, "targets": False}), model)
        loaded = loaded_with(model, vocabulary, objective.prompts(vocabulary))
        assert read_ids(loaded) == [*ids, *eos]
        assert Scorer(loaded).read(TEXT, TEXT).tokens == ids
