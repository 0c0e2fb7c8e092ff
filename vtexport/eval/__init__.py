"""Cost of pruning in answers: scenes with known answers, and measuring a bundle on them and on other datasets."""
