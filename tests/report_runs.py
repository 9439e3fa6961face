"""Folders as runs leave them, without the runs: for tests of what is drawn of them."""

import math
import random
import textwrap

from t5lite.reporting import JsonLines
from t5lite.reporting.report import describe_run

START = 1_760_000_000.0


def write_run(
    folder,
    *,
    steps=800,
    done=None,
    every=10,
    held_out_every=100,
    rate=0.01,
    hidden=256,
    seed=0,
    lost=(),
    examples=None,
):
    """Writes what a run of T5 nano of `steps` steps leaves after `done` of them.

    Args:
      lost: steps at which the loss is NaN.
      examples: of the data, as text.
    """
    rng = random.Random(seed)
    clock = [START + 3.0]
    folder.mkdir(parents=True, exist_ok=True)
    describe_run(
        folder,
        headline="t5, 1,935,104 parameters, float32, on 1 device (cpu)",
        data="task python_docs: targets (4,096 ids)\npython_docs of Python 3.11.7: documents 7,773 "
        "train + 413 validation, pairs 6,273 + 351",
        parameters=parameters(hidden),
        examples=examples
        or [
            "Return the <extra_id_0> of the list → <extra_id_0> smallest item <extra_id_1>",
            "Open file and <extra_id_0> a corresponding <extra_id_1>. If the file cannot be "
            "opened, an OSError is raised. → <extra_id_0> return <extra_id_1> file object",
        ],
        seed=seed,
        versions={"t5lite": "0.1.0", "jax": "0.10.2"},
        started=START,
        steps=steps,
    )
    (folder / "config.gin").write_text(config(folder, rate=rate, hidden=hidden, steps=steps))
    writer = JsonLines(folder, clock=lambda: clock[0])
    tokens = skipped = 0
    for step in range(every, (done or steps) + 1, every):
        clock[0] += every * rng.uniform(0.11, 0.14)
        tokens += every * rng.randrange(2300, 2500)
        loss = 4.1 + 4.6 * math.exp(-step / (steps * 0.002 / rate)) - 0.25 * step / steps
        loss += rng.gauss(0, 0.06)
        if step in lost:
            loss, skipped = math.nan, skipped + 1
        speed = rng.gauss(19_300, 500)
        writer.write(
            step,
            {
                "train/loss": loss,
                "train/accuracy": max(0.02, 0.33 - loss / 25),
                "train/z_loss": 1e-4 * loss,
                "train/gradient_norm": math.exp(rng.gauss(0.2, 0.25)) * (1 + 60 / step),
                "train/parameter_norm": 180 + 12 * math.sqrt(step / steps),
                "train/learning_rate": rate * min(step / 100, (100 / step) ** 0.5),
                **({"train/skipped_updates": float(skipped)} if skipped else {}),
                "train/steps_per_second": speed / 2400,
                "train/tokens_per_second": speed,
                "train/flops_per_second": speed * 3.6e6,
                "train/input_wait": abs(rng.gauss(0.02, 0.01)),
                "train/tokens": float(tokens),
                "train/epoch": tokens / 1.1e6,
            },
        )
        if step % held_out_every == 0:
            clock[0] += 4.0
            measured = 4.2 + 4.6 * math.exp(-step / (steps * 0.002 / rate)) - 0.1 * step / steps
            writer.write(
                step,
                {
                    "held_out/loss": measured,
                    "held_out/accuracy": 0.32 - measured / 25,
                    "held_out/perplexity": math.exp(measured),
                    "held_out/z_loss": 1.1e-4 * measured,
                },
            )
            spans = {"loss": measured + 1, "unigram": 6.499, "shuffled_inputs": measured + 1.2}
            metrics = {**spans, "margin": 5.499 - measured}
            writer.write(step, {f"span_filling/{name}": v for name, v in metrics.items()})
            writer.text(step, "span_filling/sentences", sentences(step, measured))
    writer.close()
    return folder


def sentences(step, loss):
    table = f"""\
        span filling at step {step}: 3,440 masked tokens of 164 held-out examples
          nats a token, sentinels and EOS left out
            model                           {loss + 1:.3f}
            unigrams of training text       6.499   the model is {5.499 - loss:.3f} below
            model, another's inputs         {loss + 1.2:.3f}   0.200 worse than with its own

          held-out text, its [gaps] filled in greedily

          1  Return the [1] of the list, or raise ValueError if it [2].
               model                     truth                     candidates
           [1] index                     smallest item             ▁index 12%  ▁the 5%  . 5%  , 2%
           [2] is not found              is empty                  ▁is 31%  ▁does 9%  ▁has 4%"""
    return textwrap.dedent(table)


def config(folder, *, rate, hidden, steps):
    return f"""\
from __gin__ import dynamic_registration
import t5lite

# Macros:
# ==============================================================================
MODEL_DIR = '{folder}'
TRAIN_STEPS = {steps}

# Parameters for t5lite.models.override:
# ==============================================================================
t5lite.models.override.changes = \\
    {{'*.blocks.*.mlp.hidden': {hidden},
     '*.dropout_rate': 0.0}}

# Parameters for t5lite.optimizers.AdamWScale:
# ==============================================================================
t5lite.optimizers.AdamWScale.learning_rate = {rate}

# Parameters for t5lite.train:
# ==============================================================================
t5lite.train.model_dir = %MODEL_DIR
t5lite.train.seed = 0
t5lite.train.steps = %TRAIN_STEPS
"""


def parameters(hidden):
    yield "shared/embedding", (4096, 128), ("vocab", "embed")
    for side in ("encoder", "decoder"):
        yield f"{side}/position_bias/embedding", (32, 4), ("relpos_buckets", "heads")
        attentions = ("attention", "cross_attention") if side == "decoder" else ("attention",)
        for attention in attentions:
            for name in ("query", "key", "value"):
                yield (
                    f"{side}/layers/{attention}/{name}/kernel",
                    (2, 128, 4, 32),
                    ("layers", "embed", "heads", "kv"),
                )
            yield (
                f"{side}/layers/{attention}/out/kernel",
                (2, 4, 32, 128),
                ("layers", "heads", "kv", "embed"),
            )
            yield f"{side}/layers/{attention}_norm/scale", (2, 128), ("layers", "embed")
        for name in ("gate", "wi"):
            yield f"{side}/layers/mlp/{name}/kernel", (2, 128, hidden), ("layers", "embed", "mlp")
        yield f"{side}/layers/mlp/wo/kernel", (2, hidden, 128), ("layers", "mlp", "embed")
        yield f"{side}/layers/mlp_norm/scale", (2, 128), ("layers", "embed")
        yield f"{side}/final_norm/scale", (128,), ("embed",)
    yield "lm_head/kernel", (128, 4096), ("embed", "vocab")
