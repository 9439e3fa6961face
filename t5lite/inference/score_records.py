"""Records of scored lines, and their totals."""

import dataclasses
import math

from t5lite.data.files.readers import Line, Row
from t5lite.inference.scoring import Score, perplexity


def record(line: Line, score: Score, *, per_token: bool) -> Row:
    """Returns the JSON object of an example; null for numbers that are not finite."""
    row: Row = {
        "line": line.number,
        "num_tokens": score.num_tokens,
        "log_probability": _finite(score.log_probability),
        "perplexity": _finite(score.perplexity),
    }
    if per_token:
        log_probabilities = score.token_log_probabilities.tolist()
        row |= {
            "pieces": score.pieces,
            "token_log_probabilities": [*map(_finite, log_probabilities)],
        }
    return row


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclasses.dataclass
class Totals:
    """Sums over examples; bits per byte and per character exclude truncated ones."""

    examples: int = 0
    tokens: int = 0
    log_probability: float = 0.0
    untruncated: float = 0.0
    characters: int = 0
    bytes: int = 0

    def add(self, score: Score, text: str) -> None:
        """Adds an example; `text` is the scored one, empty if it was truncated."""
        self.examples += 1
        self.tokens += score.num_tokens
        self.log_probability += score.log_probability
        if text:
            self.untruncated += score.log_probability
            self.characters += len(text)
            self.bytes += len(text.encode())

    def lines(self) -> list[str]:
        mean, bits = self.log_probability / self.tokens, -self.untruncated / math.log(2)
        lines = [
            f"{self.examples:,} examples, {self.tokens:,} tokens: log-probability "
            f"{mean:.4f} a token, {self.log_probability / self.examples:.2f} an example",
            f"perplexity {perplexity(self.log_probability, self.tokens):.4f}",
        ]
        if self.bytes:
            lines[1] += (
                f", {bits / self.bytes:.4f} bits a byte, "
                f"{bits / self.characters:.4f} bits a character"
            )
        return lines
