"""How good a model is: comparisons with people, paired statistics, diversity."""
