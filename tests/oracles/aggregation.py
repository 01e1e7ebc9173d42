"""Pairwise preference shares from several labelers, counted by hand in exact fractions."""

from fractions import Fraction


def preference_shares(labelers, larger_is_better):
    """Return {(a, b): share of labelers for a} over all ordered pairs that somebody judged.

    Each labeler gives one number a response, None where there is no judgment. A labeler who
    judged both responses of a pair gives one vote: to the better one, or half to each of a tie.
    """
    num_responses = len(labelers[0])
    shares = {}
    for a in range(num_responses):
        for b in range(num_responses):
            votes = [
                vote(scores[a], scores[b], larger_is_better)
                for scores in labelers
                if a != b and scores[a] is not None and scores[b] is not None
            ]
            if votes:
                shares[a, b] = sum(votes, Fraction(0)) / len(votes)
    return shares


def vote(score_a, score_b, larger_is_better):
    """Return one labeler's vote for a against b: 1, 0, or one half."""
    if score_a == score_b:
        return Fraction(1, 2)
    return Fraction(int((score_a > score_b) == larger_is_better))
