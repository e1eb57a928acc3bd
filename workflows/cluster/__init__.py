"""Parts that workflows share: Ray, MLflow, embedding, scoring, rollouts."""
