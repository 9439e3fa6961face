"""Metrics survive crashes without duplicates, and a foreign writer needs ten lines."""

import inspect
import json
import math
import re
import sys
import textwrap
import types

import numpy as np
import pytest

from t5lite.errors import InputError
from t5lite.reporting import JsonLines, MLflow, TensorBoard, Writers, files, writers


def read(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_json_lines_are_plain_json_one_a_line(tmp_path):
    clock = iter((100.0, 101.23456)).__next__
    writer = JsonLines(tmp_path / "new" / "folder", clock=clock)
    writer.write(1, {"loss": np.float32(2.5), "validation/loss": 3})
    writer.write(np.int64(2), {"loss": float("nan"), "norm": float("-inf"), "time": 7, "step": 9})
    text = (tmp_path / "new" / "folder" / "metrics.jsonl").read_text()
    assert text == (
        '{"step": 1, "time": 100.0, "loss": 2.5, "validation/loss": 3.0}\n'
        '{"step": 2, "time": 101.235, "loss": null, "norm": null}\n'
    )


def test_a_second_run_appends(tmp_path):
    for step in (1, 2):
        writer = JsonLines(tmp_path)
        writer.write(step, {})
        writer.close()
    assert [line["step"] for line in read(tmp_path)] == [1, 2]


@pytest.mark.parametrize("cut", ['{"step": 3, "lo', '{"step": 2}', "\n", "[1]\n"])
def test_rewinding_drops_later_and_incomplete_lines(tmp_path, cut):
    writer = JsonLines(tmp_path)
    writer.rewind(0)
    for step in (1, 2, 2, 3, 4):
        writer.write(step, {"loss": step})
    before = writer.path.read_text()
    with writer.path.open("a") as file:
        file.write(cut)
    JsonLines(tmp_path).rewind(2)
    assert writer.path.read_text() == "".join(before.splitlines(keepends=True)[:3])
    writer.write(3, {})
    assert [line["step"] for line in read(tmp_path)] == [1, 2, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_rewind_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    writer = JsonLines(tmp_path)
    for step in (1, 2):
        writer.write(step, {})
    before = writer.path.read_text()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(type(writer.path), "replace", full)
    with pytest.raises(OSError, match="No space"):
        writer.rewind(1)
    assert writer.path.read_text() == before
    writer.rewind(2)  # nothing to drop: the file is not touched


def events(folder):
    """Returns the scalars, the tags of texts and the steps from which events are purged."""
    from tensorboardX.proto.event_pb2 import Event

    scalars, texts, purged = [], [], []
    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            if event.session_log.status:
                purged.append(event.step)
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    scalars.append((event.step, value.tag, value.simple_value))
                else:
                    texts.append(value.tag)
    return scalars, texts, purged


def test_tensorboard_gets_scalars_texts_and_rewinds(tmp_path):
    writer = TensorBoard(tmp_path)
    assert list(tmp_path.iterdir()) == []
    writer.write(3, {"loss": 2.0, "validation/loss": np.float32(1.5), "norm": float("nan")})
    writer.text(3, "sample", "Hello")
    writer.close()
    scalars, texts, purged = events(tmp_path)
    assert scalars == [(3, "loss", 2.0), (3, "validation/loss", 1.5)]
    assert any("sample" in tag for tag in texts)
    assert purged == []
    resumed = TensorBoard(tmp_path)
    resumed.rewind(2)
    resumed.write(3, {"loss": 2.0})
    resumed.close()
    scalars, _, purged = events(tmp_path)
    assert len(scalars) == 3
    assert purged == [3]


def test_tensorboardx_loads_when_something_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    writer = TensorBoard(tmp_path)
    writer.rewind(5)
    writer.close()
    with pytest.raises(ImportError):
        writer.write(1, {})


class Recorder:
    def __init__(self):
        self.calls = []

    def write(self, step, metrics):
        self.calls.append((step, dict(metrics)))

    def close(self):
        self.calls.append("closed")


class TextRecorder(Recorder):
    def text(self, step, name, value):
        self.calls.append((step, name, value))

    def rewind(self, step):
        self.calls.append(("rewound", step))


def use(writer):
    writer.rewind(4)
    writer.write(5, {"loss": 1.0})
    writer.text(5, "sample", "Hello")
    writer.close()


def test_all_writers_get_their_calls():
    plain, full = Recorder(), TextRecorder()
    use(Writers([plain, full]))
    assert plain.calls == [(5, {"loss": 1.0}), "closed"]
    assert full.calls == [
        ("rewound", 4),
        (5, {"loss": 1.0}),
        (5, "sample", "Hello"),
        "closed",
    ]


def test_only_the_first_process_writes(monkeypatch):
    recorder = TextRecorder()
    monkeypatch.setattr(writers.jax, "process_index", lambda: 1)
    use(Writers([recorder]))
    assert recorder.calls == []


def test_the_weights_and_biases_writer_of_the_docstring_works_and_is_short(monkeypatch):
    logged = []
    wandb = types.ModuleType("wandb")
    wandb.init = lambda **options: types.SimpleNamespace(
        log=lambda metrics, step: logged.append((step, metrics)),
        finish=lambda: logged.append("finished"),
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    document = inspect.getdoc(writers.Writer)
    code = textwrap.dedent(re.search(r"(?s) +import wandb.*", document).group())
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    namespace = {}
    exec(code, namespace)
    use(Writers([namespace["WeightsAndBiases"]("folder")]))
    assert logged == [(5, {"loss": 1.0}), "finished"]


def texts(folder):
    return [json.loads(line) for line in (folder / "texts.jsonl").read_text().splitlines()]


def test_json_lines_keep_texts_and_forget_those_after_a_step(tmp_path):
    clock = iter(range(100, 200)).__next__
    writer = JsonLines(tmp_path / "new", clock=clock)
    message = "ein „Wort“,\nzwei\u2028drei"
    writer.text(np.int64(1), "samples", message)
    writer.text(2, "samples", "later")
    assert texts(tmp_path / "new") == [
        {"step": 1, "time": 100, "name": "samples", "text": message},
        {"step": 2, "time": 101, "name": "samples", "text": "later"},
    ]
    assert not writer.path.exists()
    with (tmp_path / "new" / "texts.jsonl").open("a") as file:
        file.write('{"step": 1, "cut')
    writer.rewind(1)
    writer.text(2, "samples", "again")
    assert [(line["step"], line["text"]) for line in texts(tmp_path / "new")] == [
        (1, message),
        (2, "again"),
    ]


# --- MLflow --------------------------------------------------------------------------------------


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    """Opens writers of one run, and shows what is in MLflow's store, a folder of the test's own."""
    pytest.importorskip("mlflow", reason="needs mlflow-skinny")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    uri = (tmp_path / "store").as_uri()
    run = tmp_path / "run"
    run.mkdir()
    client = MlflowClient(uri)

    def runs():
        actual = client.get_experiment_by_name("t5lite")
        return client.search_runs([actual.experiment_id]) if actual else []

    def history(run_id, name):
        return [(each.step, each.value) for each in client.get_metric_history(run_id, name)]

    return types.SimpleNamespace(
        open=lambda: MLflow(run, tracking_uri=uri),
        run=run,
        client=client,
        runs=runs,
        history=history,
    )


def test_mlflow_gets_metrics_texts_and_the_configuration(mlflow):
    (mlflow.run / "config.gin").write_text("a.b = 1\n")
    writer = mlflow.open()
    assert mlflow.runs() == []
    use(writer)
    writer.write(6, {"loss": math.nan, "held_out/loss": np.float32(1.5)})
    (run,) = mlflow.runs()
    assert run.info.run_name == "run"
    assert run.info.status == "RUNNING"
    assert run.data.metrics == {"loss": 1.0, "held_out/loss": 1.5}
    artifacts = {each.path for each in mlflow.client.list_artifacts(run.info.run_id)}
    assert artifacts == {"config.gin", "sample"}
    writer.close()
    assert mlflow.runs()[0].info.status == "FINISHED"


def test_mlflow_resumes_the_run_and_begins_another_at_step_0(mlflow):
    for start in (0, 2, 4):
        writer = mlflow.open()
        writer.rewind(start)
        writer.write(start + 1, {"loss": float(start)})
        writer.close()
    (run,) = mlflow.runs()
    assert mlflow.history(run.info.run_id, "loss") == [(1, 0.0), (3, 2.0), (5, 4.0)]
    writer = mlflow.open()
    writer.rewind(0)
    writer.close()
    assert len(mlflow.runs()) == 2


def test_a_missing_mlflow_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda library: None)
    with pytest.raises(InputError, match=r"pip install 't5lite\[mlflow\]'"):
        MLflow(tmp_path)


def test_an_unreachable_mlflow_server_is_named(tmp_path):
    pytest.importorskip("mlflow", reason="needs mlflow-skinny")
    with pytest.raises(InputError, match=r"set MLflow.tracking_uri or \$MLFLOW_TRACKING_URI"):
        MLflow(tmp_path, tracking_uri=f"sqlite:///{tmp_path}/x.db").rewind(0)
    assert list(tmp_path.iterdir()) == []
