"""What transformers generates, for the committed references and fresh seeds.

A model answers each prompt twice, under other penalties.
"""

from typing import Any

import numpy as np
from parity_cases import CASES

WRITERS = ("ForConditionalGeneration", "MTModel", "ForCausalLM", "LMHeadModel")
GENERATIVE = [name for name, case in CASES.items() if case["architectures"][0].endswith(WRITERS)]
PROMPT_LENGTHS = (11, 7, 4)  # the start token included where a decoder reads them
MAX_NEW_TOKENS, NUM_BEAMS = 12, 3
# Of the answers. Without the former, random models say one thing over and over.
REPETITION_PENALTIES = np.repeat(np.float32([1.0, 2.0]), len(PROMPT_LENGTHS))
LENGTH_PENALTIES = np.repeat(np.float32([1.0, 0.5]), len(PROMPT_LENGTHS))
EARLY_STOPPING = {"until_worse": False, "at_once": True}


def without_drops(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields with which experts drop no token; which they drop depends on the cache."""
    return {"expert_capacity": 64} if "expert_capacity" in config else {}


def start_id(config: Any) -> int:
    """Returns what the decoder of an encoder-decoder's config reads first."""
    found = getattr(config, "decoder_start_token_id", None)
    return config.decoder.bos_token_id if found is None else found


def generated(model: Any, seed: int) -> dict[str, np.ndarray]:
    """Returns prompts and what transformers' `generate` answers to them, one at a time.

    T5's cache has as many layers there as the encoder, and fails under a deeper decoder. All is
    then computed anew for each token.

    Args:
      model: of transformers.
      seed: of the prompts.

    Returns:
      `prompts` `[3, 11]`, padded with 0, and an `eos_id` that ends some answers early. Of greedy
      ones `tokens` `[6, 12]`, 0 behind the end, `lengths` `[6]`, `log_probabilities` `[6, 12]` of
      the tokens, and by how much their logits are the highest, `margins` `[6, 12]`. Of each way to
      stop a beam search, such as "at_once", `tokens_at_once` `[6, 3, 12]`, `lengths_at_once` and
      `scores_at_once` `[6, 3]`.
    """
    import torch
    import transformers

    torch.set_num_threads(1)  # a tenth of the time, for models so small
    config, rng = model.config, np.random.default_rng(seed)
    both = config.is_encoder_decoder
    vocab = config.get_text_config(decoder=True).vocab_size
    prompts = rng.integers(3, vocab, (len(PROMPT_LENGTHS), max(PROMPT_LENGTHS)))
    prompts[np.arange(prompts.shape[1]) >= np.array(PROMPT_LENGTHS)[:, None]] = 0
    # Every option is given below; what is not would come from here.
    model.generation_config = transformers.GenerationConfig()
    layers = [getattr(config, name, None) for name in ("num_layers", "num_decoder_layers")]

    def answers(eos_id: int | None, **options: Any) -> list[Any]:
        found = []
        for row, penalty in enumerate(REPETITION_PENALTIES):
            length = PROMPT_LENGTHS[row % len(PROMPT_LENGTHS)]
            ids = torch.from_numpy(prompts[row % len(PROMPT_LENGTHS), :length][None])
            own = {name: value[row] for name, value in options.items() if np.ndim(value)}
            chosen = transformers.GenerationConfig(
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
                repetition_penalty=float(penalty),
                eos_token_id=eos_id,
                pad_token_id=0,
                decoder_start_token_id=start_id(config) if both else None,
                use_cache=None in layers or layers[1] <= layers[0],
                return_dict_in_generate=True,
                output_scores=True,
                output_logits=True,
                **{**options, **{name: float(value) for name, value in own.items()}},
            )
            said = model.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=chosen
            )
            found.append((said.sequences[:, 1 if both else length :].numpy(), said))
        return found

    def written(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Returns rows of equal shape, 0 behind the EOS, and their lengths."""
        rows = [np.pad(row, ((0, 0), (0, MAX_NEW_TOKENS - row.shape[1]))) for row in rows]
        tokens = np.stack(rows)
        ends = tokens == eos_id
        lengths = np.where(ends.any(-1), ends.argmax(-1) + 1, MAX_NEW_TOKENS)
        inside = np.arange(MAX_NEW_TOKENS) < lengths[..., None]
        return np.where(inside, tokens, 0).astype(np.int16), lengths.astype(np.int16)

    free = np.concatenate([tokens for tokens, _ in answers(None)])
    eos_id = max(range(1, vocab), key=lambda token: variety(free, token))
    rows = answers(eos_id)
    tokens, lengths = written([tokens for tokens, _ in rows])
    logits, scores = (np.zeros((len(rows), MAX_NEW_TOKENS, vocab), np.float32) for _ in range(2))
    for row, (_, said) in enumerate(rows):
        for into, steps in ((logits, said.logits), (scores, said.scores)):
            into[row, : len(steps)] = torch.cat(steps).numpy()
    found = {
        "prompts": prompts.astype(np.int16),
        "eos_id": np.int16(eos_id),
        "tokens": tokens[:, 0],
        "lengths": lengths[:, 0],
        "log_probabilities": np.take_along_axis(
            torch.log_softmax(torch.from_numpy(logits), -1).numpy(),
            tokens[:, 0, :, None].astype(np.int64),
            -1,
        )[..., 0],
        "margins": np.diff(np.sort(scores, -1)[..., -2:], axis=-1)[..., 0],
    }
    for name, early in EARLY_STOPPING.items():
        rows = answers(
            eos_id,
            num_beams=NUM_BEAMS,
            num_return_sequences=NUM_BEAMS,
            length_penalty=LENGTH_PENALTIES,
            early_stopping=early,
        )
        found[f"tokens_{name}"], found[f"lengths_{name}"] = written([row for row, _ in rows])
        found[f"scores_{name}"] = np.stack([said.sequences_scores.numpy() for _, said in rows])
    return found


def variety(rows: np.ndarray, token: int) -> tuple[int, int]:
    """Returns at how many places rows would end with a token as EOS, and how late."""
    ends = rows == token
    lengths = np.where(ends.any(-1), ends.argmax(-1) + 1, rows.shape[1])
    return len(set(lengths.tolist())), int(lengths.sum())
