"""A model of 135M as a judge: `python -m evidence.small_judge --pairs FILE --json OUT`.

SmolLM2-135M-Instruct, greedy, behind an OpenAI-compatible address of this process, asked through
`judge:FILE.yaml` about pairs of real responses. What is measured is the method's honesty and not
the model's quality, which is near chance: how often an answer has no verdict (an error, never a
number), how often the order of two responses decides, and how often the first one shown wins.

    number         each response alone, a number from 1 to 10, as JSON
    pair           both responses, A or B, as JSON
    probabilities  both responses, the probabilities of A and B where the answer begins, which have
                   to be .5 together
    any mass       the same, however little A and B have together

Pairs are the first with few characters, so that a run takes minutes on two cores.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow.parquet as pq
import yaml

from benchmarks import harness
from benchmarks.harness import run, setting, write_figures
from panoply.measure.intervals import mean_interval
from panoply.scorers.judge.scorer import JudgeScorer
from panoply.wire.request import Chat
from tests.builders.judge_server import completion, judging

ASK = "{{ prompt }}\n\n"
BOTH = ASK + "Answer A:\n{{ first }}\n\nAnswer B:\n{{ second }}\n\n"
JSON = {"kind": "json", "structured": "none", "reason": False}
LETTER = {"kind": "pattern", "pattern": r"\A\s*(\S+)", "probabilities": True}
BY_LETTER = {
    "mode": {"kind": "pairwise"},
    "labels": {"A": 1.0, "B": 0.0},
    "prompt": BOTH + "Which answer is more helpful? Write the letter A or B and nothing else.",
    "sampling": {"max_tokens": 1},
}
JUDGES: Mapping[str, Mapping[str, Any]] = {
    "number": {
        "prompt": ASK + "{{ response }}\n\nHow helpful is this answer? {{ answer_format }}",
        "answer": JSON,
        "sampling": {"max_tokens": 24},
    },
    "pair": {
        "mode": {"kind": "pairwise"},
        "labels": {"A": 1.0, "B": 0.0},
        "prompt": BOTH + "Which answer is more helpful? {{ answer_format }}",
        "answer": JSON,
        "sampling": {"max_tokens": 24},
    },
    "probabilities": {**BY_LETTER, "answer": LETTER},
    "any mass": {**BY_LETTER, "answer": {**LETTER, "min_mass": 1e-6}},
}
Reply: TypeAlias = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """Options of the runs."""

    pairs: Path
    """Parquet file of pairs: `prompt`, `chosen`, `rejected`."""
    num: int = 100
    """Pairs that are judged."""
    most_characters: int = 900
    """Largest length of a prompt with both responses."""
    model: str = "embedded"
    """Folder of a language model with a chat template; 'embedded' is SmolLM2-135M-Instruct."""


def read_items(path: Path, num: int, most_characters: int) -> list[Chat]:
    """Returns the first pairs that are short, the chosen response first and second by turns."""
    items: list[Chat] = []
    for row in pq.read_table(path, columns=["prompt", "chosen", "rejected"]).to_pylist():
        prompt: Any = row["prompt"]
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        responses = (str(row["chosen"]), str(row["rejected"]))
        length = sum(len(turn["content"]) for turn in turns) + sum(map(len, responses))
        if length <= most_characters and all(response.strip() for response in responses):
            order = 1 if len(items) % 2 == 0 else -1
            items.append(Chat(tuple(turns), responses[::order]))
        if len(items) == num:
            break
    return items


def replies_of(folder: str) -> Reply:
    """Returns what a language model answers to a request, one at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    turn = threading.Lock()

    @torch.inference_mode()
    def reply(body: Mapping[str, Any]) -> Mapping[str, Any]:
        chat = tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        ids, cache = chat["input_ids"], None
        num_read, written, steps = ids.shape[1], list[int](), list[dict[str, float]]()
        for _ in range(body["max_tokens"]):
            output = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            top = output.logits[0, -1].float().softmax(-1).topk(20)
            token = int(top.indices[0])
            if token == tokenizer.eos_token_id:
                break
            names = [tokenizer.decode(index) for index in top.indices.tolist()]
            probabilities = zip(names, top.values.tolist(), strict=True)
            steps.append({name: p for name, p in probabilities if p > 0})
            written.append(token)
            ids = top.indices[:1, None]
        return completion(
            tokenizer.decode(written),
            finish="length" if len(written) == body["max_tokens"] else "stop",
            logprobs=steps if body.get("logprobs") else None,
            read=num_read,
            written=len(written),
        )

    def alone(body: Mapping[str, Any]) -> Mapping[str, Any]:
        with turn:
            return reply(body)

    return alone


async def ask(
    file: Path, items: Sequence[Chat]
) -> tuple[np.ndarray, dict[str, float], Counter[str]]:
    """Returns scores `[P, 2]`, NaN where one is missing, the judge's counts, and its errors."""
    judge = JudgeScorer(str(file))
    rows: list[list[float]] = []
    errors: Counter[str] = Counter()
    try:
        for item in items:
            (scores,) = await judge.score([item])
            rows.append([np.nan if s.score is None else s.score for s in scores])
            errors.update(s.error.partition(": ")[0] for s in scores if s.error)
    finally:
        await judge.close()
    return np.array(rows), judge.counts(), errors


def figures_of(scores_P2: np.ndarray, counts: Mapping[str, float], is_pair: bool) -> dict[str, Any]:
    """Returns what a judge's scores say of it; chosen responses stand first by turns."""
    sign_P = np.where(np.arange(len(scores_P2)) % 2 == 0, 1.0, -1.0)
    margin_P = sign_P * (scores_P2[:, 0] - scores_P2[:, 1])
    won_P = np.where(np.isnan(margin_P), np.nan, (np.sign(margin_P) + 1) / 2)
    present = scores_P2[np.isfinite(scores_P2)]
    num_questions = scores_P2.size  # each response alone, or each pair in both orders
    num_scored = int(np.isfinite(margin_P).sum())
    figures: dict[str, Any] = {
        "questions": num_questions,
        "parsed": 1 - counts["unread"] / num_questions,
        "pairs_with_scores": num_scored,
        "ties": share(int((margin_P == 0).sum()), num_scored),
        "accuracy": share(float(np.nansum(won_P)), num_scored),
        "ci95": mean_interval(won_P),
    }
    if is_pair:
        figures["order_decides"] = share(counts["inconsistent_pairs"], counts["pairs"])
        figures["first_wins"] = share(counts["preferred_first"], counts["decided"])
    else:
        _, times = np.unique(present, return_counts=True)
        figures["most_frequent"] = share(int(times.max(initial=0)), len(present))
    return figures


def share(part: float, whole: float) -> float | None:
    """Returns part / whole; None of nothing."""
    return part / whole if whole else None


def main(options: Options) -> None:
    """Asks each judge and prints a table for RESULTS."""
    import torch
    import transformers

    from panoply.hub.backbone.smollm2 import embedded_model

    folder = str(embedded_model()) if options.model == "embedded" else options.model
    items = read_items(options.pairs, options.num, options.most_characters)
    figures: dict[str, Any] = {
        "setting": setting(torch, transformers, pairs=len(items), file=options.pairs.name)
    }
    print("| judge | questions | with a verdict | order decides | first wins | ties | accuracy |")
    print("| --- " * 7 + "|")
    with judging(replies_of(folder)) as (url, _), tempfile.TemporaryDirectory() as scratch:
        for name, settings in JUDGES.items():
            file = Path(scratch) / f"{name}.yaml"
            server = {"url": f"{url}#small", "concurrency": 1, "timeout": 300}
            file.write_text(yaml.safe_dump({"server": server, "cache": False, **settings}))
            scores_P2, counts, errors = asyncio.run(ask(file, items))
            figure = figures_of(scores_P2, counts, "mode" in settings)
            figures[name] = {**figure, "errors": dict(errors), "counts": counts}
            cells = [
                f"{figure[key]:.2f}" if figure.get(key) is not None else "-"
                for key in ("parsed", "order_decides", "first_wins", "ties", "accuracy")
            ]
            print(f"| {name} | {figure['questions']:.0f} | {' | '.join(cells)} |", flush=True)
    write_figures(options.json, figures)


if __name__ == "__main__":
    run(main, Options)
