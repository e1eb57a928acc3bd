"""What a LASeR run and a best-of-n run are: frozen dataclasses, standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from panoply.config import DType, Rendering, require
from panoply.config.bandit import AlarmConfig, BanditConfig, SelectorConfig
from panoply.config.policy import (
    PolicyConfig,
    PolicyServerConfig,
    SamplingConfig,
    check_policy_backbone,
)
from panoply.config.preference import TrainedBackboneConfig
from panoply.config.serve import ScalingConfig, ServeConfig, ServedModelConfig

VERIFIER = "verifier"
"""Name that no arm may have."""
LASER, FIXED, ROUTER, CLASSIFIER = "laser", "fixed:", "bayesian_router", "classifier"
LASER_VERIFIED, ORACLE = "laser_verified", "oracle"
TAUGHT = (ROUTER, CLASSIFIER)
"""Strategies that learn from every arm's scores of the labeled prompts."""
STRATEGIES: dict[str, str] = {
    LASER: "the bandit of `selector`",
    LASER_VERIFIED: "the same bandit rewarded by the verifier: what a right reward would be worth",
    "thompson": "Thompson sampling by prompt on advantages: BayesianRouter without its prior",
    ROUTER: "the same with a prior from the labeled prompts: BayesianRouter (arXiv 2510.02850)",
    CLASSIFIER: "a classifier from the prompt to the arm that did best on the labeled ones",
    "random": "one arm a prompt by chance",
    "sequential": "one arm after the other",
    ORACLE: "the arm that the verifier finds best on the prompt's source: an upper bound",
    "mean": "mean of all arms' scores, each in its own deviations within the prompt",
    "mean_raw": "mean of all arms' scores as they come",
    "agreement": "votes of all arms on each two responses",
}
"""Who chooses, beside `fixed:ARM`. The last four need every arm's score of every response."""
JUDGED = (LASER_VERIFIED, ORACLE)
"""Strategies that read verdicts on prompts that are trained on: bounds, and no rivals."""
ENSEMBLES = ("mean", "mean_raw", "agreement")
"""Strategies that are a score of their own."""
SEQUENTIAL_ROUNDS = 3
"""Rounds of each arm before the next one, in `sequential`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptsConfig:
    """Which prompts; made ones, whose answers can be checked, where no file is named."""

    file: str = ""
    """Parquet or JSON lines with `prompt`, and `label` or `answer`, and `source` where there are.
    Empty: the prompts of `panoply.synthetic.verifiable`."""
    num_made: int = 120
    """Prompts made where no file is named, those held out among them."""
    num_held_out: int = 24
    """Prompts that are only evaluated on, by a hash of their text."""
    verifier: str = "function:panoply.synthetic.verifiable:obeys"
    """Function arm that tells right (1) from wrong (0) by the label; empty: none, and then there is
    neither a held-out score nor the signal 'verifier'."""

    def __post_init__(self) -> None:
        require(self.num_made >= 2, "prompts.num_made", self.num_made, ">= 2")
        require(self.num_held_out >= 0, "prompts.num_held_out", self.num_held_out, ">= 0")
        known = not self.verifier or self.verifier.startswith("function:")
        require(known, "prompts.verifier", self.verifier, "'function:MODULE:NAME', or empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmsConfig:
    """The reward models among which is chosen."""

    models: tuple[str, ...]
    """`NAME=WHERE` of each: a model's folder, hub name or `models:/NAME@ALIAS`, which get a Serve
    application of their own; `function:MODULE:NAME`; an endpoint of a server that runs,
    `DIALECT+URL#MODEL`; or `replay:FILE`, a table of recorded scores."""
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    """Replicas of each model, and what they may take."""
    timeout: float = 120.0
    """Seconds for one prompt's responses, with all attempts; then the arm has failed on it."""

    def __post_init__(self) -> None:
        require(self.timeout > 0, "arms.timeout", self.timeout, "positive")
        names = self.names
        require(VERIFIER not in names, "arms.models", names, f"names other than {VERIFIER!r}")

    def arms(self) -> tuple[ServedModelConfig, ...]:
        """Returns the arms with their settings.

        Raises:
            ValueError: two of them have one name.
        """
        return ServeConfig(models=self.models, scaling=self.scaling).served_models()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arms, in their order; none in a recipe that leaves them open."""
        is_open = not isinstance(self.models, tuple)  # pyright: ignore[reportUnnecessaryIsInstance]
        return () if is_open else tuple(arm.name for arm in self.arms())


@dataclass(frozen=True, slots=True, kw_only=True)
class LaserConfig:
    """LASeR (arXiv 2410.01735): a policy is trained by the reward models that a bandit chooses."""

    out: str = "runs/laser"
    """Run folder. The same command again resumes what it holds."""
    prompts: PromptsConfig = PromptsConfig()
    arms: ArmsConfig
    n: int = 8
    """Samples of a prompt. LASeR: 30."""
    num_pairs: int = 2
    """P, pairs of a prompt: i-th best against i-th worst. LASeR: 10."""
    num_rounds: int = 12
    prompts_per_round: int = 16
    """Prompts of one round: sampled, scored, trained on once. LASeR: 16, one step."""
    rounds_per_iteration: int = 4
    """Rounds after which DPO's reference becomes the policy as it is. With 1 the reference is the
    policy itself, and DPO's part of the loss before the step is ln 2 whatever the arm."""
    selector: SelectorConfig = field(default_factory=SelectorConfig)
    alarms: AlarmConfig = field(default_factory=AlarmConfig)
    backbone: TrainedBackboneConfig = field(default_factory=TrainedBackboneConfig)
    """The policy at its start and its adapters; `trained` is 'lora'."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    strategies: tuple[str, ...] = (LASER,)
    """Who chooses; each trains a policy of its own on the same prompts with the same updates. Of
    'laser', 'laser_verified', 'fixed:ARM', 'random', 'sequential', 'thompson', 'bayesian_router',
    'classifier', 'mean', 'mean_raw', 'agreement' and 'oracle'; the policy of the first is exported
    and registered."""
    num_labeled: int = 0
    """Prompts that are not trained on: the start's samples of them are judged by the verifier and
    scored by all arms, once. 'bayesian_router' and 'classifier' learn from them."""
    probe: str = ""
    """Trusted pairs, a file in any layout of pairs: how far a round raises the policy's margin on
    them is the signal 'probe', and what the alarm `hacking` is measured against. Of each source a
    few are drawn; pairs whose prompts are trained on or held out are left out. Empty: right and
    wrong samples of the labeled prompts, where there are any."""
    score_all: bool = False
    """Let every arm score every sample: gives `agreement` and `disagreement`, costs K times."""
    evaluate_every: int = 4
    """Rounds between looks at the held-out prompts; there is one before and one behind all too."""
    context_depth: float = 0.5
    """Share of the layers of the policy's start whose state at a prompt's end is its context."""
    num_samplers: int = 1
    """Processes that sample, of one CPU each; or that ask the server."""
    server: PolicyServerConfig = field(default_factory=PolicyServerConfig)
    """Draws the samples instead, where one is named."""
    num_workers: int = 0
    """Ray Train workers of the policy; 0 trains in the process of the run."""
    gpus: float = 0.0
    """Of each sampler and each worker."""
    seed: int = 0
    experiment: str = "laser"
    """Name in MLflow."""

    def __post_init__(self) -> None:
        for name in (
            "num_pairs",
            "num_rounds",
            "prompts_per_round",
            "rounds_per_iteration",
            "evaluate_every",
            "num_samplers",
        ):
            require(getattr(self, name) >= 1, name, getattr(self, name), ">= 1")
        require(self.n >= 2, "n", self.n, ">= 2, for a pair")
        for name in ("seed", "num_workers", "gpus", "num_labeled"):
            require(getattr(self, name) >= 0, name, getattr(self, name), ">= 0")
        inside = 0 < self.context_depth <= 1
        require(inside, "context_depth", self.context_depth, "a share of the layers in (0, 1]")
        check_policy_backbone(self.backbone)
        check_strategies(self.strategies, self.arms.names)
        taught = self.num_labeled > 0 or not set(self.strategies) & set(TAUGHT)
        require(taught, "num_labeled", self.num_labeled, f"positive with the strategies {TAUGHT}")
        judged = self.selector.signal.name == "verifier" or set(self.strategies) & set(JUDGED)
        told = bool(self.prompts.verifier) or not (judged or self.num_labeled)
        allowed = f"given with the signal 'verifier', the strategies {JUDGED} and `num_labeled`"
        require(told, "prompts.verifier", self.prompts.verifier, allowed)
        agrees = self.selector.signal.name != "agreement" or self.score_all
        require(agrees, "score_all", self.score_all, "True with the signal 'agreement'")
        looks = self.selector.signal.name != "held_out" or self.evaluate_every == 1
        require(looks, "evaluate_every", self.evaluate_every, "1 with the signal 'held_out'")
        trusted = self.selector.signal.name != "probe" or bool(self.probe) or self.num_labeled > 0
        allowed = "a file of trusted pairs with the signal 'probe', or `num_labeled` positive"
        require(trusted, "probe", self.probe, allowed)

    def selector_of(self, strategy: str) -> SelectorConfig | None:
        """Returns the selector of a strategy; None where all arms are needed."""
        if strategy == LASER:
            return self.selector
        if strategy == LASER_VERIFIED:
            signal = replace(self.selector.signal, name="verifier")
            return replace(self.selector, signal=signal)
        if strategy in ("thompson", ROUTER):
            signal = replace(self.selector.signal, name="advantage")
            bandit = BanditConfig(name="thompson")
            return replace(self.selector, policy=bandit, signal=signal, level="prompt", costs=())
        per_round = 1 if self.selector.level == "batch" else self.prompts_per_round
        bandits = {
            "random": BanditConfig(name="uniform"),
            "sequential": BanditConfig(name="sequential", span=SEQUENTIAL_ROUNDS * per_round),
        }
        if strategy.startswith(FIXED):
            arm = self.arms.names.index(strategy.removeprefix(FIXED))
            bandits[strategy] = BanditConfig(name="fixed", arm=arm)
        bandit = bandits.get(strategy)
        return None if bandit is None else replace(self.selector, policy=bandit, costs=())


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOfNConfig:
    """Best of n without training: who picks the best of a policy's samples."""

    out: str = "runs/best-of-n"
    prompts: PromptsConfig = PromptsConfig(num_held_out=0)
    """All of them are answered, but those that the run of `laser` learned from."""
    arms: ArmsConfig
    n: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of samples among which is chosen; each set holds the smaller ones."""
    model: str = "embedded"
    """The policy: 'embedded', a Hugging Face folder, or a hub name."""
    adapter: str = ""
    """Folder of its adapters; empty: none."""
    dtype: DType = "auto"
    rendering: Rendering = field(default_factory=Rendering)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    laser: str = ""
    """Folder of a run of `jobs.laser` with the same arms, whose bandit then picks the arm of each
    prompt; empty: no such row."""
    num_samplers: int = 1
    server: PolicyServerConfig = field(default_factory=PolicyServerConfig)
    """Draws the samples instead, where one is named."""
    gpus: float = 0.0
    """Of each sampler."""
    seed: int = 0
    experiment: str = "best-of-n"

    def __post_init__(self) -> None:
        fits = bool(self.n) and self.n == tuple(sorted(set(self.n))) and self.n[0] >= 1
        require(fits, "n", self.n, "ascending numbers from 1")
        require(self.num_samplers >= 1, "num_samplers", self.num_samplers, ">= 1")
        for name in ("seed", "gpus"):
            require(getattr(self, name) >= 0, name, getattr(self, name), ">= 0")


def check_strategies(strategies: tuple[str, ...], arms: tuple[str, ...]) -> None:
    """Raises a ValueError where a strategy is none, comes twice or names no arm."""
    allowed = (*STRATEGIES, *(f"{FIXED}{arm}" for arm in arms))
    known = bool(strategies) and set(strategies) <= set(allowed)
    known = known and len(set(strategies)) == len(strategies)
    require(known, "strategies", strategies, f"different ones of {allowed}")
