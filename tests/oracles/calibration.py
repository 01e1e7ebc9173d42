"""Expected calibration error (Naeini et al. 2015) by counting, each pair seen from both sides."""

import numpy as np


def bins(rows, num_bins=10):
    """Return `[weight, sum of predicted, sum of human]` of each bin; float32 decides on edges."""
    found = [[0.0, 0.0, 0.0] for _ in range(num_bins)]
    for predicted, human, weight in rows:
        for p, h in ((predicted, human), (1 - predicted, 1 - human)):
            row = found[min(int(np.float32(p) * np.float32(num_bins)), num_bins - 1)]
            for place, part in enumerate((1, p, h)):
                row[place] += weight / 2 * part
    return found


def error(rows):
    counted = bins(rows)
    return sum(abs(p - h) for _, p, h in counted) / sum(weight for weight, *_ in counted)
