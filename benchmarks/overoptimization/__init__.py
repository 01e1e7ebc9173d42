"""Over-optimisation on the real model and ratings: where gold turns, and what the alarm says."""
