"""The folder of a run: which of its files are the run's own, and what describes the run in it."""

import contextlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from t5lite.data.input_format import InputFormat, save_input_format
from t5lite.data.labels import Labels, check_labels, load_labels, save_labels
from t5lite.data.paths import write_whole
from t5lite.errors import InputError
from t5lite.interop.generation_defaults import save_defaults
from t5lite.interop.huggingface.origin import FOLDER as ORIGIN
from t5lite.interop.huggingface.origin import keep
from t5lite.interop.prompts import save_prompts
from t5lite.models import ModelSpec, differences, load_spec, save_spec
from t5lite.objectives import Prompts
from t5lite.parallel import gather
from t5lite.reporting.report import describe_run, is_report, read_facts
from t5lite.training.claims import Claim, claimed
from t5lite.training.restore import saved_steps

_FILES = (
    *("run.json", "model.json", "vocabulary", "labels.json", "prompts.json", "inputs.json"),
    *("config.gin", "generation_config.json", ORIGIN),
)
# Of runs that were begun before `run.json` listed its files.
_EARLIER_FILES = {*_FILES, "metrics.jsonl", "texts.jsonl", "report.html", "mlflow_run_id"}


@contextlib.contextmanager
def one_writer(folder: epath.Path, *, say: Callable[[str], object]) -> Iterator[Claim | None]:
    """Claims a folder for all processes of this run; process 0 gets the claim.

    Raises:
      InputError: if another run writes there, or the folder cannot be written; on every process.
    """
    with contextlib.ExitStack() as stack:
        claim, refusal = None, None
        if jax.process_index() == 0:
            try:
                claims = folder / ".claims"
                claim = stack.enter_context(claimed(claims, name=str(folder), say=say))
            except InputError as error:
                refusal = str(error)
        if refusal := gather(refusal)[0]:
            raise InputError(refusal)
        yield claim


def check_files(folder: epath.Path, of_writers: Collection[str]) -> None:
    """Refuses a folder with files that the run would overwrite, but no earlier run has written.

    Args:
      folder: the model_dir.
      of_writers: names of the files that the writers of metrics will write.

    Raises:
      InputError: naming those files.
    """
    own = _own_files(folder)
    foreign = [
        name
        for name in (*_FILES, *of_writers)
        if name not in own
        and (folder / name).exists()
        and not (name == "report.html" and is_report(folder / name))
    ]
    if foreign:
        raise InputError(
            f"model_dir = {str(folder)!r} holds {', '.join(foreign)}, which no run of t5lite wrote "
            "and this one would overwrite\nchoose another folder, or move the files away"
        )


def _own_files(folder: epath.Path) -> set[str]:
    """Returns the names that the folder's run wrote so far; none if it holds no run."""
    facts = read_facts(folder)
    if facts:
        return {"run.json", *facts.get("files", _EARLIER_FILES)}
    return _EARLIER_FILES if saved_steps(folder) else set()


def check_described(folder: epath.Path, spec: ModelSpec, vocabulary: Any, labels: Labels) -> None:
    """Raises an InputError if a folder describes another model, vocabulary or labels than these."""
    known = folder / "model.json"
    if known.exists():
        changed = differences(load_spec(known), spec)
        if changed:
            raise InputError(
                f"{folder} holds a run of another model; choose another model_dir or undo:\n  "
                + "\n  ".join(changed[:2] + [f"and {len(changed) - 2} more"] * (len(changed) > 2))
            )
    old = _saved_vocabulary(folder)
    if vocabulary is not None and old is not None and old.fingerprint != vocabulary.fingerprint:
        raise InputError(
            f"{folder} holds a run with another vocabulary "
            f"({old.size} ids, now {vocabulary.size}); choose another model_dir"
        )
    check_labels(labels, load_labels(folder), where=f"the run in {folder}")


def describe(
    folder: epath.Path,
    spec: ModelSpec,
    data: Any,
    *,
    config: str | None,
    of_writers: Sequence[str],
    facts: Mapping[str, Any],
    prompts: Prompts | None = None,
    inputs: InputFormat = InputFormat(),
    start: Any = None,
) -> None:
    """Writes what a checkpoint needs to be understood without its configuration.

    Files that say the same already stay as they are: other processes may be reading them.

    Args:
      folder: the model_dir.
      spec: of the model.
      data: gives the vocabulary and the labels.
      config: text of `config.gin`; None for none.
      of_writers: names of the files that the writers of metrics will write.
      facts: what else `run.json` says, see `describe_run`.
      prompts: how the trained model is prompted; None: it is not, or that is unknown.
      inputs: how rows become the texts that it reads.
      start: the checkpoint that a new run starts from, opened; None for none.
    """
    # First: it says which files are the run's own.
    files = sorted(_own_files(folder).union(_FILES, of_writers))
    describe_run(folder, files=files, started=time.time(), **facts)
    model = folder / "model.json"
    if not model.exists() or json.loads(model.read_text()).get("model") != spec.to_json():
        save_spec(model, spec)
    vocabulary, old = data.vocabulary(), None
    with contextlib.suppress(InputError):  # half-written by a run that was killed
        old = _saved_vocabulary(folder)
    if vocabulary is not None and (old is None or old.fingerprint != vocabulary.fingerprint):
        vocabulary.save(folder / "vocabulary")
    save_labels(folder, data.labels())
    save_prompts(folder, prompts)
    save_input_format(folder, inputs)
    if start is not None:
        # So that the run can be converted back with all that its folder said.
        keep(folder, start.origin)
        theirs = start.vocabulary
        if vocabulary is not None and theirs and theirs.fingerprint == vocabulary.fingerprint:
            save_defaults(folder, start.generation)
    text, target = (config or "").encode(), folder / "config.gin"
    if config is not None and not (target.exists() and target.read_bytes() == text):
        write_whole(target, text)


def _saved_vocabulary(folder: epath.Path) -> Any:
    if not (folder / "vocabulary").exists():
        return None
    from t5lite.data import load_vocabulary

    return load_vocabulary(folder / "vocabulary")


def last_saved(model_dir: epath.PathLike) -> str:
    """Returns a line for the end of a run: after which step its work is lost."""
    steps = saved_steps(model_dir)
    return f"step {max(steps)} is saved in {model_dir}" if steps else "no step is saved yet"
