"""Metrics of a SeqIO task, in training and in `evaluate`, against what the model says."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import SPEC, train

import t5lite
from t5lite.data import TaskData
from t5lite.data.tasks.metric_tasks import MetricExamples
from t5lite.errors import InputError
from t5lite.evaluation import SeqioMetrics
from t5lite.experiment import Experiment
from t5lite.experiment.evaluation import evaluate
from t5lite.models import override
from t5lite.objectives import Seq2Seq, SpanCorruption

SPECS = {
    "encoder_decoder": override(SPEC, {"vocab": 384}),
    "decoder": override(
        "gpt_nano", {"vocab": 384, "embed": 16, "decoder.num_layers": 1, "*.dropout_rate": 0.0}
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("topology", SPECS)
def test_metrics_are_of_what_the_run_says(topology, bidirectional, tmp_path):
    seqio = pytest.importorskip("seqio")
    tf = pytest.importorskip("tensorflow")
    texts = [f"{i} " + "ab" * (i % 4) for i in range(11)]
    seen = {}

    def read(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensor_slices({"inputs": texts, "targets": texts[::-1]})

    def length(targets, predictions):
        seen["predictions"] = predictions
        return {"length": np.mean([len(each) for each in predictions])}

    def likelihood(targets, scores):
        seen["targets"], seen["scores"] = targets, scores
        return {"likelihood": float(np.mean(scores))}

    vocabulary = seqio.ByteVocabulary(extra_ids=125)  # as many ids as the models have
    task = seqio.Task(
        "of_texts",
        source=seqio.FunctionDataSource(read, splits=["train", "validation"]),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features=dict.fromkeys(["inputs", "targets"], seqio.Feature(vocabulary)),
        metric_fns=[length, likelihood],
    )
    data = TaskData(
        task, lengths={"inputs": 16, "targets": 12}, batch_size=8, num_shards=4, prefetch=1
    )
    spec, objective = SPECS[topology], Seq2Seq(bidirectional_inputs=bidirectional)
    callbacks = [SeqioMetrics(every=4)]
    options = {"model": spec, "objective": objective, "data": data, "callbacks": callbacks}
    trained = train(tmp_path, steps=4, **options)
    in_training = dict(seen)

    loaded = t5lite.load(tmp_path)
    found = evaluate(Experiment(str(tmp_path), optimizer=None, **options))
    names = {"seqio/of_texts/length", "seqio/of_texts/likelihood"}
    assert names == set(found)
    assert trained.metrics == pytest.approx(found, rel=1e-5)
    assert in_training["predictions"] == seen["predictions"]

    assert seen["targets"] == texts[::-1]
    answers = loaded.answers(texts, max_new_tokens=12)
    assert seen["predictions"] == [vocabulary.decode(list(each.tokens)) for (each,) in answers]
    said = loaded.score(texts, targets=texts[::-1])
    expected = [float(np.sum(each.token_log_probabilities)) for each in said]
    np.testing.assert_allclose(seen["scores"], expected, rtol=1e-4)


class FakeTask:
    """A task that computes what can be checked by hand, and keeps what it was given."""

    name, split = "words", "validation"
    task = types.SimpleNamespace(output_features={"inputs": None, "targets": None})

    def __init__(self, examples, outputs=("PREDICTION", "SCORE", "PREDICTION_WITH_AUX")):
        self.all, self.outputs, self.given = examples, {*outputs}, []

    def examples(self, *, count, seed):
        return MetricExamples(self.all[:count], len(self.all), 1)

    def compute(self, examples, outputs):
        self.given.append((examples, outputs))
        return {"count": len(examples), "text": "shown", "answers": len(outputs["PREDICTION"])}


def example(inputs, targets):
    return {"inputs": np.array(inputs, np.int32), "targets": np.array(targets, np.int32)}


EXAMPLES = [example([3 + i % 9], [4 + i % 9, 1]) for i in range(11)] + [example([5], [])]


def test_answers_and_scores_are_those_of_the_model(fake_run, params):
    run, task = fake_run(), FakeTask(EXAMPLES)
    run.data.metric_tasks = lambda: [task]
    metrics = SeqioMetrics(every=1)
    assert metrics.metric_names(run) == {"seqio/words/*"}
    metrics.check(run)
    assert run.said == ["SeqioMetrics: words on 12 of 12 examples, 1 of them truncated"]
    found = metrics(run, params, step=3)
    assert found == {"seqio/words/count": 12.0, "seqio/words/answers": 12.0}
    assert run.said[1:] == ["seqio/words/text is str, not a number: left out"]
    traces = run.model.traces
    metrics(run, params, step=4)
    assert run.model.traces == traces  # compiled once
    ((examples, outputs), _) = task.given
    assert len(examples) == len(task.all)
    auxiliary = outputs["PREDICTION_WITH_AUX"][1]["scores"]
    for row, each in enumerate(examples):
        read = [*each["inputs"], 1]
        bag = np.mean(params["encoder"][np.array(read)], axis=0)

        def likelihood(token, after, bag=bag):
            return jax.nn.log_softmax(params["decoder"][after] + bag)[token]

        targets = [*each["targets"]] or [1]  # of a text without targets, its end
        score = sum(map(likelihood, targets, [0, *targets[:-1]]))
        assert outputs["SCORE"][row] == pytest.approx(float(score), rel=1e-4)
        answer, after = [], 0
        while len(answer) < 8 and after != 1:
            after = int(jnp.argmax(params["decoder"][after] + bag))
            answer.append(after)
        assert outputs["PREDICTION"][row].tolist() == answer + [0] * (8 - len(answer))
        score = sum(map(likelihood, answer, [0, *answer[:-1]]))
        assert auxiliary[row] == pytest.approx(float(score), rel=1e-4)


def test_only_so_many_are_measured_and_only_what_is_needed(fake_run, params):
    run, task = fake_run(), FakeTask(EXAMPLES, outputs=["PREDICTION"])
    run.data.metric_tasks = lambda: [task]
    assert SeqioMetrics(every=1, num_examples=5)(run, params, step=1)["seqio/words/count"] == 5
    assert run.said[0].startswith("SeqioMetrics: words on 5 of 12 examples")
    assert task.given[0][1].keys() == {"PREDICTION", "PREDICTION_WITH_AUX"}


def test_what_cannot_be_measured_is_said(fake_run, params):
    run = fake_run()
    assert SeqioMetrics(every=1)(run, params, step=1) == {}  # no tasks at all
    run.data.metric_tasks = lambda: [FakeTask(EXAMPLES, outputs=["SCORE_WITH_INTERMEDIATES"])]
    with pytest.raises(InputError, match="'words' needs SCORE_WITH_INTERMEDIATES"):
        SeqioMetrics(every=1).check(run)
    run.data.metric_tasks = lambda: [FakeTask([])]
    with pytest.raises(InputError, match="words:validation has no example"):
        SeqioMetrics(every=1).check(run)
    run = fake_run(objective=SpanCorruption())
    run.data.metric_tasks = lambda: [FakeTask(EXAMPLES)]
    assert SeqioMetrics(every=1)(run, params, step=1) == {}
    assert "left out: SpanCorruption does not answer inputs; use Seq2Seq" in run.said[0]
