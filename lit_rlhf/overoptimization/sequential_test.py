"""Does the validation reward fall while the optimised reward rises? Asked at every validation.

The question is asked again and again, nobody knows how often, and each time against the best of
the past, whichever that was. Both would make an ordinary test cry wolf. Here is what is done
about it, and what it rests on.

**A comparison.** Every validation has one value a prompt. A contrast takes the mean of the last `m`
validations minus the mean of `m` earlier ones in a row, prompt by prompt: `d_i`. Given the policies
that training went through, prompts are independent of each other: they were drawn beforehand, each
has its own random stream, and none of them is trained on. So the `d_i` of one contrast are
independent, although the validations are not: the same prompts (and streams) come back, which makes
validations dependent within a prompt, and that never enters.

**Its level.** `z = sum_i d_i / sqrt(sum_i d_i^2)`. Where the `d_i` are symmetric around a mean that
is not above zero, `P(z >= x) <= P(N >= x) / (4 P(N >= sqrt 2))` for every number of prompts and
however heavy the tails are: given the `|d_i|`, `z` is a weighted sum of random signs, and this is
the best constant that such sums allow (Bentkus and Dzindzalieta, Bernoulli 21, 2015, theorem 1.1).
Skewed differences have no such bound, and a t-test errs most where most prompts are a little worse
and a few much better. There `z` is lowered by `|g| (1 + 2 z^2) / (6 sqrt n)`, with `g < 0` their
skewness: the correction of Johnson (JASA 73, 1978), never upwards. For them the level is right for
large n; `benchmarks/overoptimization/simulated.py` measures it for 64 prompts.

**Many of them.** The union bound pays for everything at once. Test number `j` has the level
`rate / (j (j + 1))`, which adds up to `rate` over all `j` without an end; it is divided equally
among the contrasts of that validation. Every earlier validation is paid for, so the same data may
choose which of them is the peak: no prompt has to be kept apart for that. (Half of the prompts to
choose the peak and half to test against it, crosswise, would ask for z = 3.8 at the tenth
validation, of half of the prompts, which is 5.4 of all of them; the union asks for 4.4.)

**While the proxy rises.** A contrast counts only if, at that same level, the validation reward
falls and the optimised reward rises. The hypothesis that is rejected is "the one does not fall, or
the other does not rise", and a test that asks both at one level keeps this level (Berger,
Technometrics 24, 1982).

**Responses without a score.** Where a judge scores no response of a prompt in a contrast, the
prompt is not in it. The level holds for the prompts that are left, so a judge should fall silent
for reasons that have nothing to do with how good a response is.

So over a whole run, of any length, the probability of an alarm at a policy that is not worse by
the validation reward than any before it is at most `rate`. After an alarm the references begin
again at that validation, and the numbering of the tests goes on: the bound is for all alarms of a
run together, as long as no earlier one was true.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lit_rlhf.ranges import require

Floats = npt.NDArray[np.float64]

_NORMAL = NormalDist()
# 1 / (4 P(N >= sqrt 2)): what the tail of a sum of weighted signs may have over the normal one.
SIGNS_CONSTANT = 1 / (4 * _NORMAL.cdf(-math.sqrt(2)))


class Contrast(NamedTuple):
    """The comparison of one validation that speaks loudest for divergence.

    Attributes:
        window: validations averaged on each side.
        reference: index of the last validation of the earlier side.
        p_value: of "fell and rose", paid for all contrasts of all validations: divergence if it is
            at most the false-alarm rate.
    """

    window: int
    reference: int
    p_value: float


class ContrastScores(NamedTuple):
    """All comparisons of the last validation.

    Attributes:
        windows: `[C]` validations averaged on each side.
        references: `[C]` index of the last validation of the earlier side.
        fall: `[..., C]` z of the fall of the validation reward.
        rise: `[..., C]` z of the rise of the optimised reward.
    """

    windows: npt.NDArray[np.int64]
    references: npt.NDArray[np.int64]
    fall: Floats
    rise: Floats


@dataclass(frozen=True)
class DivergenceTest:
    """The sequential test that this module describes.

    Attributes:
        false_alarm_rate: bound for the probability of any false alarm in a run, in (0, 1).
        min_fall: a fall too small to be a divergence, in the unit of the validation reward: the
            hypothesis is that it fell by no more than this.
        windows: numbers of validations that are averaged on each side of a contrast, each once.

    Raises:
        ConfigError: a value is out of its range.
    """

    false_alarm_rate: float = 0.05
    min_fall: float = 0.0
    windows: tuple[int, ...] = (1, 2, 4)

    def __post_init__(self) -> None:
        require("monitor.false_alarm_rate", self.false_alarm_rate, above=0, below=1)
        require("monitor.min_fall", self.min_fall, least=0)

    def level(self, number: int) -> float:
        """Return the level of test `number`, counted from 1; all of them add up to the rate."""
        return self.false_alarm_rate / (number * (number + 1))

    def critical_value(self, number: int, num_contrasts: int) -> float:
        """Return the z that a contrast of test `number` has to reach."""
        return -_NORMAL.inv_cdf(self.level(number) / num_contrasts / SIGNS_CONSTANT)

    def scores(self, validation: Floats, proxy: Floats, start: int = 0) -> ContrastScores:
        """Compare the last validation with all before it.

        Args:
            validation: `[..., K, n]` validation rewards of `K` validations and `n` prompts, NaN
                where a response has none. A contrast leaves out the prompts of these.
            proxy: `[..., K, n]` optimised rewards, likewise.
            start: index of the first validation that may be a reference.

        Returns:
            The z of every contrast; none where `K` is too small for any.
        """
        last = validation.shape[-2] - 1
        places = [
            (window, reference)
            for window in self.windows
            for reference in range(start + window - 1, last - window + 1)
        ]
        falls, rises = (
            [_z(self._differences(values, sign, *place)) for place in places]
            for values, sign in ((validation, -1), (proxy, 1))
        )
        empty = np.empty((*validation.shape[:-2], 0))
        return ContrastScores(
            np.array([window for window, _ in places], np.int64),
            np.array([reference for _, reference in places], np.int64),
            np.stack(falls, axis=-1) if places else empty,
            np.stack(rises, axis=-1) if places else empty,
        )

    def examine(
        self, validation: Floats, proxy: Floats, *, number: int, start: int = 0
    ) -> Contrast | None:
        """Test the last validation.

        Args:
            validation: `[K, n]` validation rewards, NaN where a response has none.
            proxy: `[K, n]` optimised rewards, likewise.
            number: of this test in the run, from 1.
            start: index of the first validation that may be a reference.

        Returns:
            The loudest contrast, or None where there is nothing to compare with.
        """
        scores = self.scores(validation, proxy, start)
        if not scores.windows.size:
            return None
        loudest = np.minimum(scores.fall, scores.rise)
        best = int(loudest.argmax())
        window, reference = int(scores.windows[best]), int(scores.references[best])
        paid = self.false_alarm_rate / self.level(number) * scores.windows.size
        tail = 0.5 * math.erfc(float(loudest[best]) / math.sqrt(2))
        return Contrast(window, reference, min(1.0, SIGNS_CONSTANT * tail * paid))

    def _differences(self, values: Floats, sign: int, window: int, reference: int) -> Floats:
        """`[..., n]`: the last validations' mean minus that of the earlier ones, times the sign."""
        now = values[..., -window:, :].mean(axis=-2)
        before = values[..., reference - window + 1 : reference + 1, :].mean(axis=-2)
        differences: Floats = sign * (now - before) - (self.min_fall if sign < 0 else 0.0)
        return differences


def _z(differences: Floats) -> Floats:
    """`[..., n]` to `[...]`: the sum over its norm, less for skewness; 0 where nothing differs.

    Differences that are NaN are left out.
    """
    is_known = ~np.isnan(differences)
    n = np.maximum(is_known.sum(axis=-1), 1)
    known = np.where(is_known, differences, 0.0)
    norm = np.sqrt(np.square(known).sum(axis=-1))
    z = known.sum(axis=-1) / np.where(norm > 0, norm, 1.0)
    mean = known.sum(axis=-1) / n
    centred = np.where(is_known, known - mean[..., None], 0.0)
    deviation = np.sqrt(np.square(centred).sum(axis=-1) / n)
    # Equal differences have no skewness, and no deviation to divide by.
    third = (centred * np.square(centred)).sum(axis=-1) / n
    skewness = third / np.where(deviation > 0, deviation, 1.0) ** 3
    corrected: Floats = z + np.minimum(skewness, 0.0) * (1 + 2 * z * z) / (6 * np.sqrt(n))
    return corrected
