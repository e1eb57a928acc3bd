"""A selector over three arms of which one is right most often, for tests that disturb it."""

import math

import numpy as np

from actors.bandit import BanditActor
from panoply.config.bandit import SelectorConfig, SignalConfig
from panoply.laser.log import Log, state_version
from panoply.laser.rounds import RoundPrompt
from panoply.laser.signals import PromptOutcome

ARMS = ("ann", "bob", "cy")
CONFIG = SelectorConfig(signal=SignalConfig(name="verifier"), seed=3)


def prompts_of(round, num=8):
    rng = np.random.default_rng((7, round))
    contexts = rng.normal(size=(num, 5)) / math.sqrt(5)
    return [RoundPrompt(f"{round}-{i}", f"domain{i % 2}", x) for i, x in enumerate(contexts)]


def outcomes_of(round, decisions):
    """What comes of the decisions: bob is right, and every number is a function of the prompt."""
    found = []
    for decision in decisions:
        rng = np.random.default_rng((round, int(decision.prompt_id.split("-")[1])))
        right = float(rng.random() < {"ann": 0.2, "bob": 0.9, "cy": 0.4}[decision.arm])
        loss = 1 + rng.normal() - 0.01 * round
        found.append(
            PromptOutcome(
                prompt_id=decision.prompt_id,
                loss=loss,
                loss_after=loss - 0.1 * rng.random(),
                verifier=right,
                length=100 * rng.random(),
            )
        )
    return found


def make(folder, config=CONFIG, arms=ARMS):
    return BanditActor(config, arms, 5, str(folder), None)


def run(folder, rounds, config=CONFIG, *, disturb=lambda selector, where: selector):
    """Plays rounds; `disturb` may replace the selector before, between and after its two calls."""
    selector = make(folder, config)
    for round in rounds:
        selector = disturb(selector, "before")
        decisions = selector.begin_round(round, prompts_of(round), {})
        selector = disturb(selector, "begun")
        selector.end_round(round, outcomes_of(round, decisions))
        selector = disturb(selector, "ended")
    return selector


def same_state(one, other):
    return state_version(one.learned()) == state_version(other.learned())


def same_log(one, other):
    a, b = (Log(str(folder), ARMS).read() for folder in (one, other))
    return a.decisions.equals(b.decisions) and a.rewards.equals(b.rewards)
