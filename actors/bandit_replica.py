"""A replica of a served bandit, which asks the bandit for an arm and the arm for the scores."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import JsonValue
from ray.serve.handle import DeploymentHandle

from actors.bandit_contexts import num_features, open_contexts
from actors.composite_replica import ModelHandle, ModelPart
from actors.function_replica import FunctionReplica
from actors.online_bandit import OnlineBanditActor, RemoteBandit
from panoply.config.serve import ServedModelConfig
from panoply.scorers.bandit.opening import open_arms, read_bandit
from panoply.scorers.bandit.scorer import BanditScorer, Decider
from panoply.scorers.where import BanditFile, OpenModel, Scorer, open_scorer, parse_where
from panoply.secret import NO_KEYS, Keys
from panoply.serve.calls import FeedbackRequest, ReplicaRequest
from panoply.wire.feedback import OutcomeAnswer
from panoply.wire.request import Item, RequestError, Score


class BanditReplica(FunctionReplica):
    """A replica of a served bandit. Functions, endpoints, judges and tables are opened in it."""

    def __init__(
        self,
        config: ServedModelConfig,
        keys: Keys = NO_KEYS,
        models: Mapping[str, ModelHandle] | None = None,
        *,
        bandit: DeploymentHandle[Any] | Decider | None = None,
    ) -> None:
        """Opens the arms, and loads the model of the context where there is one.

        Args:
            config: the bandit's settings.
            keys: API keys of endpoints, where the environment of this process lacks them.
            models: the reward models among the arms, by their WHERE.
            bandit: chooses and learns for all replicas; a replica that is the only one does so
                itself, without one.

        Raises:
            ValueError, OSError: a setting is wrong, or an arm cannot be opened.
        """
        if isinstance(bandit, DeploymentHandle):
            bandit = RemoteBandit(bandit.decide.remote, bandit.learn.remote)
        self.decider = bandit
        handles = models or {}
        super().__init__(config, keys, lambda arm: ModelPart(arm.name, handles[arm.where]))

    def open(self, config: ServedModelConfig, open_model: OpenModel | None) -> Scorer:
        """Returns the scorer of the bandit; raises as the constructor does."""
        where = parse_where(config.where)
        assert isinstance(where, BanditFile)
        file = Path(where.file).expanduser()
        settings = read_bandit(file)

        def open_arm(name: str, place: str) -> Scorer:
            return open_scorer(replace(config, name=name, where=place), open_model=open_model)

        arms = open_arms(file, settings, open_arm)
        contexts = open_contexts(settings.context)
        decider = self.decider
        if decider is None:
            actor = OnlineBanditActor(config.name, str(file), num_features(settings.context))
            decider = RemoteBandit(actor.decide, actor.learn)
        return BanditScorer(settings, arms, contexts, decider)

    def about(self) -> dict[str, JsonValue]:
        """Returns the kind, the arms, and what the bandit learns from."""
        assert isinstance(self.scorer, BanditScorer)
        config = self.scorer.config
        return {
            **super().about(),
            "arms": list(config.names),
            "bandit": config.bandit["kind"],
            "signal": config.signal.name,
        }

    async def rows(
        self, units: Sequence[Item], request: ReplicaRequest
    ) -> Sequence[tuple[Score, ...]]:
        """Returns the scores of each item, by the arm that the bandit chose for its prompt."""
        assert isinstance(self.scorer, BanditScorer)
        return await self.scorer.score_for(request.caller, units)

    async def feedback(self, request: FeedbackRequest) -> Sequence[OutcomeAnswer] | RequestError:
        """Returns what becomes of outcomes; or why nothing does, as a value."""
        try:
            async with asyncio.timeout(request.timeout):
                assert isinstance(self.scorer, BanditScorer)
                return await self.scorer.bandit.learn(request.caller, request.outcomes)
        except RequestError as error:
            return error
        except TimeoutError:
            return RequestError(f"{self.config.name!r} took no outcome in time", 503)
