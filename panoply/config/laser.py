"""Configuration of LASeR and best-of-n runs: frozen dataclasses, standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from panoply.bandit.bandits import FixedArm, Sequential, Thompson, Uniform
from panoply.config import DType, Rendering, require
from panoply.config.bandit import AlarmConfig, SelectorConfig
from panoply.config.files import FilesConfig, check_files, names_of_columns
from panoply.config.policy import (
    PolicyConfig,
    PolicyServerConfig,
    SamplingConfig,
    check_policy_backbone,
)
from panoply.config.preference import TrainedBackboneConfig
from panoply.config.resume import DATA, EXTENDS, NO_EFFECT, PLACE
from panoply.config.serve import ScalingConfig, ServeConfig, ServedModelConfig
from panoply.config.tracked import TrackedRun
from panoply.secret import check_file_uri

VERIFIER = "verifier"
"""Name that no arm may have."""
LASER, FIXED, ROUTER, CLASSIFIER = "laser", "fixed:", "bayesian_router", "classifier"
LASER_VERIFIED, ORACLE = "laser_verified", "oracle"
NEEDS_CALIBRATION = (ROUTER, CLASSIFIER)
"""Strategies that learn from every arm's scores of the calibration prompts."""
STRATEGIES: dict[str, str] = {
    LASER: "the bandit of `selector`",
    LASER_VERIFIED: "the same bandit rewarded by the verifier: what a right reward would be worth",
    "thompson": "Thompson sampling by prompt on advantages: BayesianRouter without its prior",
    ROUTER: "the same with a prior from calibration prompts: BayesianRouter (arXiv 2510.02850)",
    CLASSIFIER: "a classifier from the prompt to the arm that did best on calibration prompts",
    "random": "one arm a prompt by chance",
    "sequential": "one arm after the other",
    ORACLE: "the arm that the verifier finds best on the prompt's source: an upper bound",
    "mean": "mean of all arms' scores, each in its own deviations within the prompt",
    "mean_raw": "mean of all arms' scores as they come",
    "agreement": "votes of all arms on each two responses",
}
"""Selection strategies, beside `fixed:ARM`. The last four need all arms' scores of all samples."""
USES_VERIFIER = (LASER_VERIFIED, ORACLE)
"""Strategies that read verdicts on prompts that are trained on: bounds, and no rivals."""
ENSEMBLES = ("mean", "mean_raw", "agreement")
"""Strategies that rank responses by a combination of all arms' scores."""
SEQUENTIAL_ROUNDS = 3
"""Rounds of each arm before the next one, in `sequential`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptsConfig(FilesConfig):
    """Prompts of a run: a file's, or synthetic ones whose answers can be checked."""

    file: str = field(default="", metadata=DATA)
    """File, URI or hub name with `prompt`, and `label` or `answer`, and `source` where there are.
    Empty: the prompts of `panoply.synthetic.verifiable`."""
    num_made: int = 120
    """Number of synthetic prompts where no file is named, those held out among them."""
    num_held_out: int = 24
    """Number of prompts that are only evaluated on, chosen by a hash of their text."""
    verifier: str = "function:panoply.synthetic.verifiable:obeys"
    """Function that tells right (1) from wrong (0) by the label; empty: none, and then there is
    neither a held-out score nor the signal 'verifier'."""

    def __post_init__(self) -> None:
        check_files(self, (self.file,), "prompts.file")
        require(self.num_made >= 2, "prompts.num_made", self.num_made, ">= 2")
        require(self.num_held_out >= 0, "prompts.num_held_out", self.num_held_out, ">= 0")
        is_function = not self.verifier or self.verifier.startswith("function:")
        allowed = "'function:MODULE:NAME', or empty"
        require(is_function, "prompts.verifier", self.verifier, allowed)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmsConfig:
    """The reward models to choose among."""

    models: tuple[str, ...] = field(metadata=PLACE)
    """`NAME=WHERE` of each: a model's folder, hub name or `models:/NAME@ALIAS`, which get a Serve
    application of their own; `function:MODULE:NAME`; an endpoint of a server that runs,
    `DIALECT+URL#MODEL`; `replay:FILE`, a table of recorded scores; `judge:FILE.yaml`; or
    `combine:FILE.yaml`."""
    scaling: ScalingConfig = field(default_factory=ScalingConfig, metadata=NO_EFFECT)
    """Replicas of each model, and what they may take."""
    timeout: float = field(default=120.0, metadata=NO_EFFECT)
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
class LaserConfig(TrackedRun):
    """LASeR (arXiv 2410.01735): a policy is trained by the reward models that a bandit chooses."""

    out: str = field(default="runs/laser", metadata=NO_EFFECT)
    """Run folder. The same command again resumes what it holds."""
    prompts: PromptsConfig = PromptsConfig()
    """Prompts to train on, to hold out and to calibrate on."""
    arms: ArmsConfig
    """Reward models to choose among."""
    num_samples: int = 8
    """Samples of a prompt, n. LASeR: 30."""
    pairs_per_prompt: int = 2
    """Pairs of a prompt, P: i-th best against i-th worst. LASeR: 10."""
    num_rounds: int = 12
    """Number of rounds: sample, score, train, reward."""
    prompts_per_round: int = 16
    """Prompts of one round: sampled, scored, trained on once. LASeR: 16, one step."""
    rounds_per_iteration: int = 4
    """Rounds after which DPO's reference becomes the policy as it is. With 1 the reference is the
    policy itself, and DPO's part of the loss before the step is ln 2 whatever the arm."""
    selector: SelectorConfig = field(default_factory=SelectorConfig)
    """The bandit, its reward, and suspension of arms that fail."""
    alarms: AlarmConfig = field(default_factory=AlarmConfig, metadata=EXTENDS)
    """Alarms of the run, and what they ask for."""
    backbone: TrainedBackboneConfig = field(default_factory=TrainedBackboneConfig)
    """The policy at its start and its adapters; `trained` is 'lora'."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """Update of the policy in a round."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Sampling from the policy."""
    strategies: tuple[str, ...] = field(default=(LASER,), metadata=EXTENDS)
    """Selection strategies; each trains a policy of its own on the same prompts with the same
    updates: 'laser', 'laser_verified', 'fixed:ARM', 'random', 'sequential', 'thompson',
    'bayesian_router', 'classifier', 'mean', 'mean_raw', 'agreement' or 'oracle'. The policy of the
    first is exported and registered."""
    num_calibration_prompts: int = 0
    """Number of prompts that are not trained on: the start's samples of them are judged by the
    verifier and scored by all arms, once. 'bayesian_router' and 'classifier' learn from them."""
    gold_pairs: str = field(default="", metadata=DATA)
    """Trusted pairs, a file in any layout of pairs: the rise of the policy's margin on them in a
    round is the signal 'gold_margin', and what the alarm `hacking` is measured against. Pairs whose
    prompts are trained on or held out are left out, and a few are drawn from each source. Empty:
    right and wrong samples of the calibration prompts, where there are any."""
    gold_columns: tuple[str, ...] = ()
    """Columns of the file of gold pairs under the names of a known layout, as in
    `chosen=better,rejected=worse`."""
    score_with_all_arms: bool = False
    """Let every arm score every sample: gives `agreement` and `disagreement`, costs K times."""
    evaluate_every: int = 4
    """Rounds between evaluations on the held-out prompts; the start and the end are evaluated
    too."""
    context_depth: float = 0.5
    """Share of the layers of the policy's start whose state at a prompt's end is its context."""
    num_samplers: int = field(default=1, metadata=NO_EFFECT)
    """Number of processes that sample, with one CPU each, or that ask the server."""
    server: PolicyServerConfig = field(default_factory=PolicyServerConfig, metadata=EXTENDS)
    """Server that draws the samples instead, where one is named."""
    num_workers: int = field(default=0, metadata=NO_EFFECT)
    """Ray Train workers of the policy; 0 trains in the process of the run."""
    gpus: float = field(default=0.0, metadata=NO_EFFECT)
    """GPUs of each sampler and each worker."""
    seed: int = 0
    """Seed of prompts' order, samples and updates."""
    experiment: str = field(default="laser", metadata=NO_EFFECT)
    """MLflow experiment, or project of another tracker."""
    model_name: str = field(default="policy", metadata=NO_EFFECT)
    """Name that the model gets in MLflow's registry; each run adds a version."""

    def __post_init__(self) -> None:
        for name in (
            "pairs_per_prompt",
            "num_rounds",
            "prompts_per_round",
            "rounds_per_iteration",
            "evaluate_every",
            "num_samplers",
        ):
            require(getattr(self, name) >= 1, name, getattr(self, name), ">= 1")
        require(self.num_samples >= 2, "num_samples", self.num_samples, ">= 2, for a pair")
        for name in ("seed", "num_workers", "gpus", "num_calibration_prompts"):
            require(getattr(self, name) >= 0, name, getattr(self, name), ">= 0")
        names_of_columns(self.gold_columns)
        check_file_uri(self.gold_pairs, "gold_pairs")
        inside = 0 < self.context_depth <= 1
        require(inside, "context_depth", self.context_depth, "a share of the layers in (0, 1]")
        check_policy_backbone(self.backbone)
        check_strategies(self.strategies, self.arms.names)
        self._check_inputs()

    def _check_inputs(self) -> None:
        """Raises a ValueError where a signal or strategy lacks what it is computed from."""
        signal, strategies = self.selector.signal.name, set(self.strategies)
        num, calibrates = self.num_calibration_prompts, self.num_calibration_prompts > 0

        enough = calibrates or not strategies & set(NEEDS_CALIBRATION)
        allowed = f"positive with the strategies {NEEDS_CALIBRATION}"
        require(enough, "num_calibration_prompts", num, allowed)

        judges = signal == "verifier" or calibrates or bool(strategies & set(USES_VERIFIER))
        verifier, users = self.prompts.verifier, f"the strategies {USES_VERIFIER}"
        allowed = f"named with the signal 'verifier', {users} and `num_calibration_prompts`"
        require(bool(verifier) or not judges, "prompts.verifier", verifier, allowed)

        all_score = self.score_with_all_arms
        allowed = "True with the signal 'agreement'"
        require(signal != "agreement" or all_score, "score_with_all_arms", all_score, allowed)

        every = self.evaluate_every
        allowed = "1 with the signal 'held_out'"
        require(signal != "held_out" or every == 1, "evaluate_every", every, allowed)

        trusted = signal != "gold_margin" or bool(self.gold_pairs) or calibrates
        allowed = "a file with the signal 'gold_margin', or `num_calibration_prompts` positive"
        require(trusted, "gold_pairs", self.gold_pairs, allowed)

    def selector_of(self, strategy: str) -> SelectorConfig | None:
        """Returns the selector of a strategy; None where all arms are needed."""
        selector = self.selector
        per_round = 1 if selector.level == "batch" else self.prompts_per_round
        match strategy:
            case "laser":
                return selector
            case "laser_verified":
                return replace(selector, signal=replace(selector.signal, name="verifier"))
            case "thompson" | "bayesian_router":
                signal = replace(selector.signal, name="advantage")
                return replace(selector, bandit=Thompson(), signal=signal, level="prompt", costs=())
            case "random":
                return replace(selector, bandit=Uniform(), costs=())
            case "sequential":
                bandit = Sequential(period=SEQUENTIAL_ROUNDS * per_round)
                return replace(selector, bandit=bandit, costs=())
            case _ if strategy.startswith(FIXED):
                arm = self.arms.names.index(strategy.removeprefix(FIXED))
                return replace(selector, bandit=FixedArm(arm=arm), costs=())
            case _:
                return None


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledPolicyConfig:
    """A policy that is only sampled from."""

    model: str = field(default="embedded", metadata=PLACE)
    """The policy: 'embedded', a Hugging Face folder, or a hub name."""
    adapter: str = field(default="", metadata=PLACE)
    """Folder of the policy's adapters; empty: none."""
    dtype: DType = "auto"
    """Precision of the forward; 'auto' takes bfloat16 where the hardware multiplies it fast."""
    rendering: Rendering = field(default_factory=Rendering)
    """Limits of the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOfNConfig(TrackedRun):
    """Best of n without training: the best of a policy's samples by each arm and ensemble."""

    out: str = field(default="runs/best-of-n", metadata=NO_EFFECT)
    """Run folder."""
    prompts: PromptsConfig = PromptsConfig(num_held_out=0)
    """All of them are answered, but those that the run of `laser` learned from."""
    arms: ArmsConfig
    """Reward models that pick the best sample."""
    num_samples: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers n of samples among which the best is chosen. The largest is drawn, and figures of
    the others are expectations over all sets of so many of them."""
    backbone: SampledPolicyConfig = field(default_factory=SampledPolicyConfig)
    """The policy and its adapters."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Sampling from the policy."""
    laser: str = field(default="", metadata=PLACE)
    """Folder of a run of `jobs.laser` with the same arms, whose bandit then picks the arm of each
    prompt; empty: no such row."""
    num_samplers: int = field(default=1, metadata=NO_EFFECT)
    """Number of processes that sample, with one CPU each, or that ask the server."""
    server: PolicyServerConfig = field(default_factory=PolicyServerConfig, metadata=EXTENDS)
    """Server that draws the samples instead, where one is named."""
    gpus: float = field(default=0.0, metadata=NO_EFFECT)
    """GPUs of each sampler."""
    seed: int = 0
    """Seed of the samples and of the bandit's choices."""
    experiment: str = field(default="best-of-n", metadata=NO_EFFECT)
    """MLflow experiment, or project of another tracker."""

    def __post_init__(self) -> None:
        sizes = self.num_samples
        ascending = bool(sizes) and sizes == tuple(sorted(set(sizes))) and sizes[0] >= 1
        require(ascending, "num_samples", sizes, "ascending numbers from 1")
        require(self.num_samplers >= 1, "num_samplers", self.num_samplers, ">= 1")
        for name in ("seed", "gpus"):
            require(getattr(self, name) >= 0, name, getattr(self, name), ">= 0")


def check_strategies(strategies: tuple[str, ...], arms: tuple[str, ...]) -> None:
    """Raises a ValueError where a strategy is none, comes twice or names no arm."""
    allowed = (*STRATEGIES, *(f"{FIXED}{arm}" for arm in arms))
    valid = bool(strategies) and set(strategies) <= set(allowed)
    distinct = len(set(strategies)) == len(strategies)
    require(valid and distinct, "strategies", strategies, f"different ones of {allowed}")
