"""What averaging people's judgments buys, on the real ratings of the demonstration.

python -m benchmarks.averaging [--seeds 5] [--output docs]

A pair is two movie texts; a judgment of it is what one rater gave both. Labels are made of 1, 2,
4, 8 or 15 judgments, and three things are measured:

- how often the label names the text that other raters, held out, rate higher;
- how often a reward model trained on such labels orders held-out texts as all their raters do,
  with the same pairs at every number of judgments, and with the same number of judgments in all
  (fewer pairs, each judged more often);
- the same with majority votes and with shares that the package's default prior shrinks, and how
  calibrated each is.

The reward model is a linear head on the first layers of SmolLM2-135M-Instruct, which stay as they
are, so that one is trained in a second. Writes averaging.json, averaging.md and averaging.png.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.averaging_report import write_report
from lit_rlhf.demo.datasets import INSTRUCTION
from lit_rlhf.demo.fetching import RATINGS_ARCHIVE, fetch
from lit_rlhf.demo.model import prepare_model
from lit_rlhf.demo.ratings import RatedText, Split, read_ratings, texts_of
from lit_rlhf.evaluation.calibration import JudgedPredictions, brier_score, calibration_error
from lit_rlhf.feedback import JudgedGroup
from lit_rlhf.feedback.aggregation import BetaMean
from lit_rlhf.models import load_causal_lm, load_tokenizer
from lit_rlhf.objectives import bradley_terry_loss

COUNTS = (1, 2, 4, 8, 15)
NUM_HELD_OUT = 5  # raters whose mean judges a label; with 15 others a text has 20
NUM_LAYERS = 10
NUM_PAIRS = 1_500
BUDGET = 3_000  # judgments, where their number in all is the same
NUM_VALIDATION = 250
NUM_TEST = 20_000
PENALTIES = (0.03, 0.1, 0.3, 1, 3, 10)
Kind = Literal["share", "shrunk share", "majority vote"]
Labels = npt.NDArray[np.float64]


class Texts(NamedTuple):
    """Texts of one split: their ratings, and `[N, F]` what the frozen layers make of them."""

    rated: list[RatedText]
    features: Tensor


class Pairs(NamedTuple):
    """Pairs of texts: `[M]` indices of the first and the second, and the share for the first."""

    first: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]
    label: Labels


def read_texts(split: Split) -> Texts:
    """Return the texts of a split with their features."""
    rated = texts_of(read_ratings(fetch(RATINGS_ARCHIVE)), split)
    return Texts(rated, _features([f"{INSTRUCTION} {one.text}" for one in rated]))


@torch.no_grad()
def _features(texts: Sequence[str]) -> Tensor:
    """Return the mean over tokens and the last token of the hidden states, in float64."""
    folder = str(prepare_model())
    tokenizer = load_tokenizer(folder)
    model = load_causal_lm(folder).eval().model
    model.layers = model.layers[:NUM_LAYERS]
    found = []
    for start in range(0, len(texts), 64):
        rows = tokenizer(list(texts[start : start + 64]), return_tensors="pt", padding=True)
        mask = rows["attention_mask"][:, :, None].double()
        hidden = model(**rows, use_cache=False).last_hidden_state.double()  # [B, L, H]
        last = hidden.gather(
            1, (mask.sum(1).long() - 1)[:, :, None].expand(-1, -1, hidden.shape[2])
        )
        found.append(torch.cat([(hidden * mask).sum(1) / mask.sum(1), last[:, 0]], dim=1))
    return torch.cat(found)


def label_of(first: Sequence[int], second: Sequence[int], kind: Kind = "share") -> float:
    """Return the label of a pair: how much raters are for its first text.

    Args:
        first: what each rater gave the first text.
        second: what the same raters gave the second.
        kind: the share of raters, that share shrunk by `BetaMean`'s default prior, or 1, 0 or
            one half by what most of them say.
    """
    ratings = tuple((float(a), float(b)) for a, b in zip(first, second, strict=True))
    group = JudgedGroup(INSTRUCTION, ("first", "second"), ratings=ratings)
    (pair,) = (BetaMean() if kind == "shrunk share" else BetaMean(prior=0)).pairs(group)
    share = pair.probability if pair.chosen == 0 else 1 - pair.probability
    return float(np.sign(share - 0.5)) / 2 + 0.5 if kind == "majority vote" else share


def draw_pairs(
    draw: np.random.Generator, texts: Texts, num_pairs: int, count: int, kind: Kind
) -> Pairs:
    """Draw pairs in which no text is twice, each with its label of `count` judgments."""
    places = draw.permutation(len(texts.rated))[: 2 * num_pairs].reshape(-1, 2)
    labels = []
    for pair in places:
        first, second = (draw.permutation(texts.rated[place].ratings)[:count] for place in pair)
        labels.append(label_of(first.tolist(), second.tolist(), kind))
    return Pairs(places[:, 0], places[:, 1], np.array(labels))


def label_accuracy(seed: int, texts: Sequence[RatedText], num_pairs: int = 4_000) -> list[float]:
    """Return how often labels of each count agree with the mean of `NUM_HELD_OUT` other raters.

    A tied label counts one half; pairs whose held-out means are equal are left out.
    """
    draw = np.random.default_rng(seed)
    most = max(COUNTS)
    enough = [one.ratings for one in texts if len(one.ratings) >= most + NUM_HELD_OUT]
    right: list[list[float]] = [[] for _ in COUNTS]
    for _ in range(num_pairs):
        a, b = (draw.permutation(enough[i]) for i in draw.choice(len(enough), 2, replace=False))
        held_out = float(a[most:][:NUM_HELD_OUT].mean() - b[most:][:NUM_HELD_OUT].mean())
        if held_out == 0:
            continue
        for place, count in enumerate(COUNTS):
            label = label_of(a[:count].tolist(), b[:count].tolist())
            right[place].append(0.5 + 0.5 * float(np.sign(label - 0.5) * np.sign(held_out)))
    return [float(np.mean(one)) for one in right]


def train_head(
    texts: Texts, pairs: Pairs, held_out: Texts, validation: Pairs
) -> tuple[Tensor, float]:
    """Train a head `[F]` for each penalty; return that with the least validation loss, and it."""
    heads = [_fit(_gaps(texts, pairs), torch.from_numpy(pairs.label), one) for one in PENALTIES]
    gaps, label = _gaps(held_out, validation), torch.from_numpy(validation.label)
    losses = [float(_loss(gaps @ head, label)) for head in heads]
    best = int(np.argmin(losses))
    return heads[best], PENALTIES[best]


def _fit(gaps: Tensor, label: Tensor, penalty: float) -> Tensor:
    """Return the head with the least `loss + penalty * |head|^2 / 2`, a convex problem."""
    head = torch.zeros(gaps.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([head], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = _loss(gaps @ head, label) + penalty * head.square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    return head.detach()


def _loss(difference: Tensor, label: Tensor) -> Tensor:
    return bradley_terry_loss(difference, torch.zeros_like(difference), label).mean()


def _gaps(texts: Texts, pairs: Pairs) -> Tensor:
    return texts.features[pairs.first] - texts.features[pairs.second]


def measure_head(head: Tensor, texts: Texts, pairs: Pairs) -> dict[str, float]:
    """Return how well a head predicts held-out pairs, whose labels are shares of all raters."""
    difference = _gaps(texts, pairs) @ head
    means = np.array([one.mean for one in texts.rated])
    gap = means[pairs.first] - means[pairs.second]
    decided = gap != 0
    right = np.sign(difference.numpy()) == np.sign(gap)
    ones = np.ones(len(gap))
    predicted = JudgedPredictions(
        difference.sigmoid().numpy(), pairs.label, ones, np.zeros(len(gap), np.int64), 1
    )
    return {
        "accuracy": float(right[decided].mean()),
        "calibration": calibration_error(predicted).value,
        "brier": brier_score(predicted).value,
    }


def test_pairs(texts: Texts) -> Pairs:
    """Return pairs of held-out texts, each labelled by every pair of raters of the two."""
    draw = np.random.default_rng(0)
    first, second = (draw.integers(len(texts.rated), size=NUM_TEST) for _ in range(2))
    kept = first != second
    first, second = first[kept], second[kept]
    ratings = [np.array(one.ratings) for one in texts.rated]
    gaps = (ratings[a][:, None] - ratings[b][None, :] for a, b in zip(first, second, strict=True))
    return Pairs(first, second, np.array([0.5 + np.sign(gap).mean() / 2 for gap in gaps]))


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(description="What averaging people's judgments buys.")
    parser.add_argument("--seeds", type=int, default=5, help="draws of pairs and raters")
    parser.add_argument("--output", type=Path, default=Path("runs/averaging"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    train, validation, held_out = read_texts("train"), read_texts("validation"), read_texts("test")
    mean, deviation = train.features.mean(0), train.features.std(0)
    train, validation, held_out = (
        texts._replace(features=(texts.features - mean) / deviation)
        for texts in (train, validation, held_out)
    )
    sys.stderr.write(f"features after {time.perf_counter() - start:.0f} s\n")
    judged = test_pairs(held_out)
    rows: list[dict[str, object]] = []
    for seed in range(options.seeds):
        labels = label_accuracy(seed, train.rated)
        rows += [
            {"seed": seed, "count": n, "label": v} for n, v in zip(COUNTS, labels, strict=True)
        ]
        for count, is_budget, kind in product(COUNTS, (False, True), get_args(Kind)):
            pairs_of = partial(draw_pairs, count=count, kind=kind)
            draw = np.random.default_rng((seed, is_budget))
            pairs = pairs_of(draw, train, BUDGET // count if is_budget else NUM_PAIRS)
            checked = pairs_of(draw, validation, NUM_VALIDATION)
            head, penalty = train_head(train, pairs, validation, checked)
            about = {"seed": seed, "count": count, "budget": is_budget, "kind": kind}
            rows.append({**about, "penalty": penalty, **measure_head(head, held_out, judged)})
        sys.stderr.write(f"seed {seed} after {time.perf_counter() - start:.0f} s\n")
    options.output.mkdir(parents=True, exist_ok=True)
    seconds = time.perf_counter() - start
    text = json.dumps({"seconds": seconds, "rows": rows}, indent=1)
    (options.output / "averaging.json").write_text(f"{text}\n", encoding="utf-8")
    write_report(rows, options.output)


if __name__ == "__main__":
    main()
