"""Process reward models: a head of two classes at the separator behind each step of a response.

    p_i = softmax(W z_i + b)[1]      z_i the state at the separator behind step i

The format is that of Qwen/Qwen2.5-Math-PRM-* (arXiv 2501.07301): the steps without white space
around them, each followed by one separator token, in the assistant's turn of the chat template. The
score of a response is made of the p_i by a rule (`panoply.config.steps`).

A step is read as a response of its own: a response of n steps is n branches of a token tree, each
the beginning of the next. What they share is computed once, so all steps cost what the whole
response costs.

Legend: `S` steps, `D` hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from panoply.config.steps import MOST_STEPS, StepRule
from panoply.hub.backbone.backbone import Backbone
from panoply.hub.backbone.control_tokens import ControlTokens
from panoply.hub.backbone.renderer import Renderer
from panoply.hub.door.checkpoint import few
from panoply.hub.reward_model import ScoreDetails, ScoringModel, provenance_of
from panoply.model.gather import Tokenized
from panoply.model.tree import Branch, TokenTree
from panoply.serve.calls import ReplicaRequest
from panoply.wire.request import Detail, Details, Score

SEPARATOR = "<extra_0>"
"""Separator of Qwen2.5-Math-PRM."""
Steps: TypeAlias = tuple[float | None, ...]
"""Probability of each step; the last one is None where limits cut its separator, or text behind."""


class ProcessModel(ScoringModel[Steps]):
    """A reward model that scores the steps of a response: conversations in, scores out."""

    needs_turns = True
    """Separators are looked for in the response alone."""

    def __init__(self, backbone: Backbone, head: nn.Module, rule: StepRule) -> None:
        """Takes the parts, and lets the renderer write separators.

        Args:
            backbone: with its renderer.
            head: states `[S, D]` to logits `[S, 2]`.
            rule: of this model's steps.

        Raises:
            ValueError: the separator is no added token of the tokenizer.
        """
        self.backbone, self.rule = backbone, rule
        self.head = head.cpu().float().eval().requires_grad_(False)
        self.separator = rule.separator or SEPARATOR
        renderer = backbone.renderer
        check_separator(renderer, self.separator, str(backbone.name))
        # The separator is a control token, as the template's markers are: what spells it is text.
        markers = (*renderer.turns.markers, self.separator)
        renderer.control_tokens = ControlTokens(renderer.tokenizer, markers)
        renderer.write_reply = self._with_separators
        self.separator_id: int = renderer.tokenizer.convert_tokens_to_ids(self.separator)
        renderer.separator_id = self.separator_id
        provenance = provenance_of("process", backbone, self.head.state_dict())
        self.provenance = {**provenance, "steps": str(rule), "separator": self.separator}

    def _with_separators(self, response: str) -> str:
        """Returns a response as text with a separator behind each step; its own text stays text.

        Raises:
            ValueError: it has too many steps.
        """
        hide = self.backbone.renderer.control_tokens.hide
        return "".join(hide(step) + self.separator for step in self.rule.split_text(response))

    @torch.inference_mode()
    def forward(self, trees: Sequence[TokenTree]) -> list[Steps]:
        """Returns the probabilities of the steps of each response.

        Raises:
            ValueError: token ids bring more separators than a response may have steps.
        """
        ends_R: list[list[int]] = []
        stop_R: list[int] = []
        nested: list[TokenTree] = []
        for tree in trees:
            steps: list[Branch] = []
            for branch in tree.branches:
                ends = self._ends(branch)
                ends_R.append(ends)
                stop_R.append(branch.stop)
                steps += [Branch(branch.tokens[:end], branch.start, end) for end in ends]
            if steps:
                nested.append(replace(tree, branches=tuple(steps)))
        scores = iter(self._scores(nested).tolist())
        outputs: list[Steps] = []
        for ends, stop in zip(ends_R, stop_R, strict=True):
            output: Steps = tuple(next(scores) for _ in ends)
            is_whole = bool(ends) and ends[-1] == stop
            outputs.append(output if is_whole else (*output, None))
        return outputs

    def _ends(self, branch: Branch) -> list[int]:
        """Returns the index behind each separator of a response."""
        reply = branch.tokens[branch.start : branch.stop]
        ends = [branch.start + i + 1 for i, token in enumerate(reply) if token == self.separator_id]
        if len(ends) > MOST_STEPS:
            raise ValueError(f"{len(ends):,} separators in a response, at most {MOST_STEPS} fit")
        return ends

    def _scores(self, trees: Sequence[TokenTree]) -> Tensor:
        """Returns the probability `[S]` of every step, tree by tree."""
        if not trees:
            return torch.zeros(0)
        states_SD = self.backbone.features(trees).last_RLD[:, -1]
        return self.head(states_SD).softmax(1)[:, 1]

    def score_of(self, output: Steps) -> float:
        """Returns the score of a response by its steps; NaN where one of them is missing."""
        score = self.rule.combined(output)
        return math.nan if score is None else score

    def details_of(self, output: Steps, details: Set[Detail]) -> ScoreDetails:
        """Returns the scores of the steps."""
        return ScoreDetails(steps=output) if "steps" in details else ScoreDetails()

    def to_score(self, output: Steps, conversation: Tokenized, request: ReplicaRequest) -> Score:
        """Converts the steps of a conversation to a score; an error where a step is missing."""
        if output[-1] is not None:
            return super().to_score(output, conversation, request)
        why = "the token ids have no separator behind it"
        if conversation.response_tokens_cut:
            why = f"the limits of the model cut {conversation.response_tokens_cut:,} tokens"
        return Score(
            error=f"step {len(output)} has no score, and so the response has none: {why}",
            details=Details(steps=output if "steps" in request.details else ()),
            num_tokens=len(conversation.tokens),
            num_cut=conversation.num_cut,
        )


def check_separator(renderer: Renderer, separator: str, name: str) -> None:
    """Checks that a separator is a token of its own, which no other text becomes.

    Args:
        renderer: of the model.
        separator: as text.
        name: of the model, for the message.

    Raises:
        ValueError: the tokenizer has no such token.
    """
    added = [token.content for token in renderer.tokenizer.added_tokens_decoder.values()]
    if separator not in added:
        raise ValueError(
            f"{name!r} scores steps at a separator, and {separator!r} is no added token of its "
            f"tokenizer (it has {few(added)}): name the token that it was trained with, as in "
            "`FOLDER?steps=min&separator=TOKEN`"
        )
