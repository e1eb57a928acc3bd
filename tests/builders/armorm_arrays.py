"""Features in memory with a planted truth: what a prompt is about decides which rating counts.

Needs nothing but numpy and panoply.armorm, so that it runs where the wheel alone is installed.
"""

import numpy as np

from panoply.armorm import ComparedResponses, RatedResponses
from panoply.config.armorm import GateConfig

NAMES = ("helpful", "concise")
GATE = GateConfig(hidden_size=16, input_dropout=0.0, dropout=0.0, temperature=1.0, num_steps=200)


def planted_arrays(num_ratings=600, num_pairs=900, num_held_out=300, seed=0, conflict=True):
    """Ratings and pairs to fit on, and chosen, rejected and prompt features of other pairs.

    Without conflict the same rating counts for every prompt.
    """
    rng = np.random.default_rng(seed)
    read_NF = rng.normal(size=(12, 2))  # how features show the two rated attributes

    def rows(size):
        attributes = rng.normal(size=(size, 2))
        noise = rng.normal(size=(size, 12))
        return (attributes @ read_NF.T + 0.3 * noise).astype(np.float32), attributes

    x, attributes = rows(num_ratings)
    ratings = attributes + 0.3 * rng.normal(size=attributes.shape)
    ratings[rng.random(ratings.shape) < 0.2] = np.nan
    length = rng.integers(20, 2000, size=num_ratings)
    rated = RatedResponses(x, ratings, length, [f"rated {i}" for i in range(num_ratings)])

    num = num_pairs + num_held_out
    kind = rng.integers(2, size=num) if conflict else np.zeros(num, np.int64)
    prompts = rng.normal(size=(num, 8)).astype(np.float32)
    prompts[:, 0] += 4 * kind
    first, second = rows(num), rows(num)
    weights = np.where(kind[:, None] == 0, [1.0, 0.1], [0.1, 1.0])
    first_wins = ((first[1] - second[1]) * weights).sum(1) > 0
    chosen = np.where(first_wins[:, None], first[0], second[0])
    rejected = np.where(first_wins[:, None], second[0], first[0])
    lengths = rng.integers(20, 2000, size=(2, num))
    fit_on, held_out = slice(0, num_pairs), slice(num_pairs, num)
    compared = ComparedResponses(
        chosen[fit_on],
        rejected[fit_on],
        prompts[fit_on],
        lengths[0, fit_on],
        lengths[1, fit_on],
        [f"prompt {i}" for i in range(num_pairs)],
    )
    return rated, compared, (chosen[held_out], rejected[held_out], prompts[held_out])
