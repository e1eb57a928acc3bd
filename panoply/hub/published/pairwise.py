"""Pairwise preference models: a language model that answers which of two responses is better.

    P(a > b) = 1/2 [ sigma(z_A - z_B | a shown first) + sigma(z_B - z_A | b shown first) ]

z_A and z_B are the logits of the label tokens at the first token of the answer. Both orders are
read because such models favor a position. The format is that of RLHFlow/pair-preference-model-*
(SLiC-HF, arXiv 2305.10425, as in `pair-pm` of RLHFlow/RLHF-Reward-Modeling): one user turn, and no
token that marks the beginning of the sequence.

Any language model has these logits. One is taken for a preference model only if it puts most of its
probability on the two labels.

Legend: `B` orders of two responses, `D` hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panoply.data.schema import Prompt
from panoply.hub.backbone.backbone import Backbone
from panoply.hub.backbone.renderer import RenderedTree
from panoply.hub.door.checkpoint import Checkpoint
from panoply.hub.example_conversations import EXAMPLE_CONVERSATIONS, sequences
from panoply.hub.published.loading import (
    load_chat_tokenizer,
    load_whole,
    make_backbone,
    on_best_device,
)
from panoply.hub.reward_model import RewardModel, provenance_of
from panoply.model.gather import Tokenized
from panoply.model.tree import Branch, TokenTree, common_prefix
from panoply.types import Array

LABELS = ("A", "B")
TEMPLATE = "[CONTEXT] {context} [RESPONSE A] {a} [RESPONSE B] {b} \n"
TURN = "\n<turn> {role}\n {content}"
"""Template of a turn of the context, which begins and ends with a newline."""
LEAST_MASS = 0.5
"""Probability of the two labels together, at least."""


class PairwiseModel(RewardModel[float]):
    """A model that compares two responses to a prompt and has no score for one."""

    is_pairwise = True

    def __init__(self, backbone: Backbone, head: Mapping[str, Tensor]) -> None:
        self.backbone = backbone
        self.head = {name: tensor.detach().float().cpu() for name, tensor in head.items()}
        provenance = provenance_of("pairwise", backbone, self.head)
        self.provenance = {**provenance, "bos": "none"}  # as in the published format
        self.num_template = len(self._ids(TEMPLATE.format(context="", a="", b="")))

    @torch.inference_mode()
    def forward(self, trees: Sequence[TokenTree]) -> list[float]:
        """Returns the probability of the response shown first, for each order of a pair."""
        states_BD = self.backbone.features(trees).last_RLD[:, -1]
        z_B2 = states_BD @ self.head["weight"].T + self.head["bias"]
        return torch.sigmoid(z_B2[:, 0] - z_B2[:, 1]).tolist()

    def preference_probability(self, first: float, second: float) -> float:
        """Returns the mean over both orders."""
        return (first + 1 - second) / 2

    def rate(self, trees: Sequence[TokenTree]) -> Array:
        """Returns the probability that the first response is better, for each pair's tree."""
        first_N = np.array(self.forward(trees)).reshape(-1, 2)
        return (first_N[:, 0] + 1 - first_N[:, 1]) / 2

    def split(self, trees: Sequence[TokenTree]) -> list[TokenTree]:
        """Returns the trees: each is one pair."""
        return list(trees)

    def render(self, prompt: Prompt, responses: Sequence[str]) -> list[RenderedTree]:
        """Returns a tree for each response and the next one, the last with the first."""
        following = [*responses[1:], *responses[:1]]
        return [self.render_pair(prompt, a, b) for a, b in zip(responses, following, strict=True)]

    def read_pair(self, prompt: Prompt, a: str, b: str) -> list[Tokenized]:
        """Returns both orders. All pairs of a prompt can share it, for nothing hangs on a gate."""
        rendered = self.render_pair(prompt, a, b)
        start = len(rendered.tree.shared)
        cuts = rendered.prompt_tokens_cut, rendered.response_tokens_cut
        return [Tokenized(row, 0, start, len(row), *cuts) for row in sequences([rendered.tree])]

    def render_pair(self, prompt: Prompt, a: str, b: str) -> RenderedTree:
        """Returns both orders of a pair as one token tree: they share the context.

        The context keeps its last tokens, at most half of all, and each response its first ones, at
        most half of what the context leaves.

        Raises:
            ValueError: the prompt has other turns than user and assistant in turn.
        """
        limits = self.backbone.renderer.rendering
        room = limits.max_tokens - self.num_template
        text, cut = self._cut(context(prompt), -max(8, room // 2))
        tokenizer = self.backbone.renderer.tokenizer
        num_context = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        most = max(8, (room - num_context) // 2)
        a, cut_a = self._cut(a, most)
        b, cut_b = self._cut(b, most)
        rows = [
            self._ids(TEMPLATE.format(context=text, a=a, b=b)),
            self._ids(TEMPLATE.format(context=text, a=b, b=a)),
        ]
        shared = min(common_prefix(*rows), len(rows[0]) - 1, len(rows[1]) - 1)
        branches = [Branch(tuple(row[shared:]), 0, len(row) - shared) for row in rows]
        tree = TokenTree(tuple(rows[0][:shared]), tuple(branches), gate=shared - 1)
        return RenderedTree(tree, cut, (cut_a > 0) + (cut_b > 0), cut_a + cut_b)

    def _cut(self, text: str, most: int) -> tuple[str, int]:
        """Returns at most `most` tokens of a text, its last ones if negative, and what was cut."""
        places = self.backbone.renderer.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True
        )["offset_mapping"]
        if (cut := len(places) - abs(most)) <= 0:
            return text, 0
        return (text[: places[most - 1][1]] if most > 0 else text[places[cut][0] :]), cut

    def _ids(self, text: str) -> list[int]:
        tokenizer = self.backbone.renderer.tokenizer
        control_tokens = self.backbone.renderer.control_tokens
        turn = [{"role": "user", "content": control_tokens.hide(text)}]
        # Llama 3's first template opened the answer unasked, later ones do when they are asked to.
        whole = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        whole = whole.removeprefix(tokenizer.bos_token or "")
        return control_tokens.tokenize([whole])[0]


def context(prompt: Prompt) -> str:
    """Returns a conversation as the format writes it.

    Raises:
        ValueError: other turns than user and assistant in turn.
    """
    roles = [turn["role"] for turn in prompt]
    if roles != [("user", "assistant")[i % 2] for i in range(len(roles))]:
        raise ValueError(
            f"a pairwise model's format knows user and assistant turns in turn, got {roles!r}: "
            "write what the system turn says into the first user turn"
        )
    return "\n" + "".join(TURN.format(**turn) for turn in prompt) + "\n"


def load_pairwise(
    checkpoint: Checkpoint, fields: Mapping[str, Any], max_tokens: int = 0
) -> PairwiseModel:
    """Loads a language model as a preference model.

    Args:
        checkpoint: with its tensors.
        fields: its configuration.
        max_tokens: most tokens of a pair; 0: as many as the model has positions.

    Raises:
        ValueError: it answers neither A nor B, its labels are several tokens, or its head is more
            than one linear layer.
    """
    from transformers import AutoModelForCausalLM

    folder = checkpoint.folder
    tokenizer = load_chat_tokenizer(folder)
    labels = [tokenizer(label, add_special_tokens=False)["input_ids"] for label in LABELS]
    if any(len(ids) != 1 for ids in labels):
        raise ValueError(
            f"the tokenizer in {str(folder)!r} has no single token for each of {LABELS}, which "
            "a pairwise model answers with: take the tokenizer that it came with"
        )
    language_model = on_best_device(load_whole(AutoModelForCausalLM, folder, fields).eval())
    top = language_model.get_output_embeddings()
    rows = [ids[0] for ids in labels]
    bias = torch.zeros(2) if top.bias is None else top.bias[rows]
    backbone = make_backbone(folder.name, language_model.base_model, tokenizer, max_tokens)
    model = PairwiseModel(backbone, {"weight": top.weight[rows], "bias": bias})
    _check_answers(model, language_model, rows)
    return model


@torch.inference_mode()
def _check_answers(model: PairwiseModel, language_model: Any, labels: list[int]) -> None:
    """Compares with the language model itself on an example: it must answer with a label."""
    prompt, responses = EXAMPLE_CONVERSATIONS[0]
    tree = model.render_pair(prompt, responses[0], responses[2]).tree
    rows: list[Tensor] = []
    for tokens in sequences([tree]):
        ids = torch.tensor([tokens], device=language_model.device)
        rows.append(language_model(input_ids=ids).logits[0, -1].float().cpu())
    logits = torch.stack(rows)
    mass = float(logits.softmax(1)[:, labels].sum(1).min())
    name = str(model.backbone.name)
    if mass < LEAST_MASS:
        raise ValueError(
            f"{name!r} is a language model with no reward head, and asked which of two responses "
            f"is better it says neither {LABELS[0]!r} nor {LABELS[1]!r} (probability {mass:.2g}, "
            f"at least {LEAST_MASS}): it is no pairwise model. Train one on it (jobs.preference)"
        )
    first, second = torch.sigmoid(logits[:, labels[0]] - logits[:, labels[1]]).tolist()
    expected = model.preference_probability(first, second)
    probability = float(model.rate([tree])[0])
    bound = 1e-3 if model.backbone.decoder.dtype == torch.float32 else 0.05
    if abs(expected - probability) > bound:
        raise ValueError(
            f"{name!r} has a head that is more than one linear layer: it prefers with probability "
            f"{expected:.4f}, its last layer alone with {probability:.4f}. It does not load"
        )
