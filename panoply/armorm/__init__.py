"""ArmoRM's mathematics: ridge regression, length debiasing, gate baselines."""
