"""`t5lite cache`: tokenises, prepares and packs a run's data once."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from t5lite.data.paths import as_path, check_folder
from t5lite.errors import InputError

if TYPE_CHECKING:
    from t5lite.configuration import Configuration
    from t5lite.reporting.bars import Bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="output folder, new or empty"
    )
    parser.add_argument(
        "--epochs",
        type=int,
        default=1,
        metavar="N",
        help="epochs of the training data to cache, each with its own masks (1)",
    )
    parser.add_argument(
        "--format",
        choices=("packed", "shards", "seqio"),
        default="packed",
        help="packed: packed rows, for PackedData; shards: token ids in ArrayRecord files, for "
        "ShardedData, with any objective; seqio: SeqIO's offline cache of the task's tokens, for "
        "any program that uses SeqIO (packed)",
    )


def run(arguments: argparse.Namespace, configuration: "Configuration") -> None:
    """Caches the data bound to `train`, and prints how to use the cache."""
    from t5lite.commands.configured import experiment_of
    from t5lite.data.packed.writer import write_packed
    from t5lite.data.sharded.tokens import write_tokens
    from t5lite.reporting.bars import Bar
    from t5lite.training.claims import claimed

    experiment = experiment_of(configuration, model_dir=arguments.output, optimizer=None)
    check_folder(arguments.output, field="--output")
    files = " ".join(f"--gin_file={file}" for file in arguments.gin_file)
    target = as_path(arguments.output)
    claims = target.with_name(f".{target.name}.claims")
    claim = claimed(claims, name=f"--output={arguments.output}", field="output")
    if arguments.format == "seqio":
        with claim:
            cache_tasks(experiment.data, arguments.output, seed=experiment.seed)
        print(
            f"train on it:  t5lite train {files} --gin.data.TaskData.use_cached=True "
            f"--gin.data.TaskData.cache_dirs=\"['{arguments.output}']\"\n"
            f"elsewhere:    seqio.add_global_cache_dirs(['{arguments.output}'])"
        )
        return
    if arguments.format == "shards":
        with claim, Bar(unit="records") as bar:
            manifest = write_tokens(
                experiment.data,
                experiment.bound,
                arguments.output,
                seed=experiment.seed,
                progress=_count(bar),
            )
        for split, shards in manifest.splits.items():
            print(f"{split}: {sum(s.records for s in shards):,} records in {len(shards)} shards")
        print(f"train on it:  t5lite train {files} --gin_file={arguments.output}/use.gin")
        return
    with claim, Bar(unit="rows") as bar:
        description = write_packed(
            experiment.data,
            experiment.bound,
            arguments.output,
            epochs=arguments.epochs,
            seed=experiment.seed,
            progress=_count(bar),
        )
    for split, passes in description["passes"].items():
        for epoch in passes:
            tokens = ", ".join(f"{count:,} {name}" for name, count in epoch["tokens"].items())
            print(f"{split}: {epoch['rows']:,} rows of {epoch['examples']:,} examples; {tokens}")
    print(f"train on it:  t5lite train {files} --gin_file={arguments.output}/use.gin")


def cache_tasks(data: Any, folder: str, *, seed: int = 0) -> None:
    """Writes SeqIO's offline cache of each of the data's tasks; InputError if there is none."""
    from t5lite.data.tasks.cache import write_seqio_cache
    from t5lite.reporting.bars import Bar

    provider = getattr(data, "provider", None)
    if provider is None:
        raise InputError(
            f"format = seqio: {type(data).__name__} reads no SeqIO task; use --format=packed",
            field="format",
        )
    for task in getattr(provider, "tasks", [provider]):
        with Bar(unit="examples") as bar:
            progress = _count(bar, task.name)
            target = write_seqio_cache(task, folder, seed=seed, progress=progress)
        print(f"{target}: {', '.join(task.splits)}")


def _count(bar: "Bar", name: str = "") -> Callable[[str, int], None]:
    """Returns a function that adds to the bar of a split."""

    def count(split: str, amount: int) -> None:
        bar.section(f"{name} {split}".strip())
        bar.add(amount)

    return count
