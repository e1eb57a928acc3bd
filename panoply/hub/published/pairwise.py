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
from typing import Any, NoReturn

import torch
from torch import Tensor

from panoply.data.schema import Prompt
from panoply.hub.artefact.classifier import PROBES
from panoply.hub.backbone.backbone import Backbone
from panoply.hub.backbone.renderer import RenderedTree
from panoply.hub.backbone.scoring_model import provenance_of
from panoply.hub.published.checkpoint import Checkpoint
from panoply.hub.published.loading import device, load_tokenizer, load_whole, make_backbone
from panoply.model.tree import Branch, TokenTree, common_prefix

LABELS = ("A", "B")
TEMPLATE = "[CONTEXT] {context} [RESPONSE A] {a} [RESPONSE B] {b} \n"
TURN = "\n<turn> {role}\n {content}"
"""A turn of the context, which begins and ends with a newline."""
LEAST_MASS = 0.5
"""Probability of the two labels together, at least."""


class PairwiseModel:
    """A model that compares two responses to a prompt and has no score for one."""

    def __init__(self, backbone: Backbone, head: Mapping[str, Tensor]) -> None:
        self.backbone = backbone
        self.head = {name: tensor.detach().float().cpu() for name, tensor in head.items()}
        self.provenance = provenance_of("pairwise", backbone, self.head)
        self.provenance["bos"] = "none"  # as in the published format
        self.num_template = len(self._ids(TEMPLATE.format(context="", a="", b="")))

    def compare(self, prompt: Prompt, a: str, b: str) -> float:
        """Returns the probability that response `a` is better than `b`.

        Raises:
            ValueError: the prompt has other turns than user and assistant in turn.
        """
        return float(self.probabilities([self.render(prompt, a, b).tree])[0])

    def probabilities(self, trees: Sequence[TokenTree]) -> Tensor:
        """Returns the probability that the first response is better, for each pair's tree."""
        first_B = self.shown_first(trees)
        return (first_B[0::2] + 1 - first_B[1::2]) / 2

    @torch.inference_mode()
    def shown_first(self, trees: Sequence[TokenTree]) -> Tensor:
        """Returns the probability `[B]` of the response shown first, for each order of a pair."""
        states_BD = self.backbone.features(trees).last_RLD[:, -1]
        z_B2 = states_BD @ self.head["weight"].T + self.head["bias"]
        return torch.sigmoid(z_B2[:, 0] - z_B2[:, 1])

    def score_trees(self, trees: Sequence[TokenTree]) -> NoReturn:
        """Raises ValueError: there is no score of a single response."""
        raise ValueError(
            f"{self.backbone.name!r} is a pairwise model and has no scalar score: ask "
            "compare(prompt, a, b), or rank by a tournament"
        )

    def score(self, prompt: Prompt, responses: Sequence[str]) -> NoReturn:
        """Raises ValueError: there is no score of a single response."""
        self.score_trees([])

    def render(self, prompt: Prompt, a: str, b: str) -> RenderedTree:
        """Returns both orders of a pair as one token tree: they share the context.

        The context keeps its last tokens and a response its first ones.

        Raises:
            ValueError: see `compare`.
        """
        limits = self.backbone.renderer.rendering
        own = max(8, (limits.max_response_tokens - self.num_template) // 2)
        text, cut = self._cut(context(prompt), -limits.max_prompt_tokens)
        (a, cut_a), (b, cut_b) = self._cut(a, own), self._cut(b, own)
        rows = [self._ids(TEMPLATE.format(context=text, a=x, b=y)) for x, y in ((a, b), (b, a))]
        shared = min(common_prefix(*rows), *(len(row) - 1 for row in rows))
        branches = (Branch(tuple(row[shared:]), 0, len(row) - shared) for row in rows)
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
        turn = [{"role": "user", "content": text}]
        # Llama 3's first template opened the answer unasked, later ones do when they are asked to.
        whole = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        whole = whole.removeprefix(tokenizer.bos_token or "")
        return tokenizer(whole, add_special_tokens=False)["input_ids"]


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


def load_pairwise(checkpoint: Checkpoint, fields: Mapping[str, Any]) -> PairwiseModel:
    """Loads a language model as a preference model.

    Raises:
        ValueError: it answers neither A nor B, its labels are several tokens, or its head is more
            than one linear layer.
    """
    from transformers import AutoModelForCausalLM

    folder = checkpoint.folder
    tokenizer = load_tokenizer(folder)
    labels = [tokenizer(label, add_special_tokens=False)["input_ids"] for label in LABELS]
    if any(len(ids) != 1 for ids in labels):
        raise ValueError(
            f"the tokenizer in {str(folder)!r} has no single token for each of {LABELS}, which "
            "a pairwise model answers with: take the tokenizer that it came with"
        )
    language_model = load_whole(AutoModelForCausalLM, folder, fields).eval().to(device())
    top = language_model.get_output_embeddings()
    rows = [ids[0] for ids in labels]
    bias = torch.zeros(2) if top.bias is None else top.bias[rows]
    backbone = make_backbone(folder.name, language_model.base_model, tokenizer)
    model = PairwiseModel(backbone, {"weight": top.weight[rows], "bias": bias})
    _check_answers(model, language_model, rows)
    return model


@torch.inference_mode()
def _check_answers(model: PairwiseModel, language_model: Any, labels: list[int]) -> None:
    """Compares with the language model itself, on a probe: it must answer with a label."""
    prompt, responses = PROBES[0]
    tree = model.render(prompt, responses[0], responses[2]).tree
    rows = [tree.shared + branch.tokens for branch in tree.branches]
    inputs = (torch.tensor([row], device=language_model.device) for row in rows)
    odds = torch.stack(
        [language_model(input_ids=ids).logits[0, -1].float().cpu() for ids in inputs]
    )
    mass = float(odds.softmax(1)[:, labels].sum(1).min())
    name = str(model.backbone.name)
    if mass < LEAST_MASS:
        raise ValueError(
            f"{name!r} is a language model with no reward head, and asked which of two responses "
            f"is better it says neither {LABELS[0]!r} nor {LABELS[1]!r} (probability {mass:.2g}, "
            f"at least {LEAST_MASS}): it is no pairwise model. Train one on it (jobs.preference)"
        )
    first, second = torch.sigmoid(odds[:, labels[0]] - odds[:, labels[1]]).tolist()
    own, found = (first + 1 - second) / 2, float(model.probabilities([tree])[0])
    if abs(own - found) > (1e-3 if model.backbone.decoder.dtype == torch.float32 else 0.05):
        raise ValueError(
            f"{name!r} has a head that is more than one linear layer: it prefers with probability "
            f"{own:.4f}, its last layer alone with {found:.4f}. It does not load"
        )
