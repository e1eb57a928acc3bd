"""Does a policy of a domain help a reward model? `python -m evidence.merging --help`.

DogeRM's question (arXiv 2407.01470) on SmolLM2-135M-Instruct, where elsewhere is TruthfulQA and the
domain is school mathematics. A reward model is trained on pairs of TruthfulQA, and a policy on
worked solutions of GSM8K's *train* questions; the pairs of the domain are on its *test* questions.
The reward model is merged with

* the policy;
* the *shuffled* policy, a control: the same changes of the base, at random places of each tensor,
  so that the models lie equally far apart and nothing was learned;
* a second reward model of the same recipe and another seed (a weight average, arXiv 2401.12187).

All by `jobs.merge`: the share is chosen on *select*, and *test* is only reported. The same command
goes on behind what is finished.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from benchmarks import harness
from benchmarks.harness import run, setting, write_figures
from panoply.config.merge import MergeConfig
from panoply.config.preference import (
    LastLayers,
    PreferenceConfig,
    ScheduleConfig,
    TrainedBackboneConfig,
)

CALCULATION = re.compile(r"<<.*?>>")
"""Calls of a calculator in GSM8K's solutions."""
MOST_TOKENS = 384
"""Longest conversation that the policy is trained on; longer ones are passed over."""
BATCH, RATE, WARMUP = 8, 5e-5, 0.1
AT_ONCE = 2
"""Conversations of a forward pass; the vocabulary is large."""
NUM_HELD_OUT = 40
"""Solutions behind those trained on, by which the policy is told to have learned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """Options of the runs."""

    data: Path = Path("../shared/data")
    """Folder with `pairs/truthfulqa.parquet` and `pairs/gsm8k_solutions.parquet`."""
    texts: Path
    """GSM8K's `train.jsonl` with `question` and `answer`, as github.com/openai/grade-school-math
    has it."""
    work: Path = Path("runs/merging")
    """Folder of the trained and merged models."""
    num_texts: int = 300
    """Solutions that the policy is trained on, once each."""
    num_pairs: int = 1500
    """Most pairs of TruthfulQA that the reward models are trained and tested on."""
    num_judged: int = 2000
    """Most pairs of each source that the merges are judged by; seven of ten are left out."""
    shares: tuple[float, ...] = (0.1, 0.3, 0.5)
    """Shares of the policy that are tried beside 0."""
    num_workers: int = 1
    """Scoring actors."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A question and its worked solution as tokens."""

    ids: list[int]
    num_prompt: int
    """Tokens before the solution, which no loss is of."""


def read_conversations(texts: Path, tokenizer: Any, num: int) -> list[Conversation]:
    """Returns the first conversations that are short enough, in the chat template."""
    conversations: list[Conversation] = []
    for line in texts.read_text().splitlines():
        row = json.loads(line)
        solution = CALCULATION.sub("", row["answer"]).replace("####", "A:")
        turns = [{"role": "user", "content": row["question"]}]
        before = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        turns.append({"role": "assistant", "content": solution})
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
        if len(ids) <= MOST_TOKENS:
            num_prompt = len(tokenizer(before, add_special_tokens=False)["input_ids"])
            conversations.append(Conversation(ids, num_prompt))
        if len(conversations) == num:
            break
    return conversations


def loss_sum(model: Any, batch: Sequence[Conversation]) -> tuple[torch.Tensor, int]:
    """Returns minus the log likelihood of the solutions in nats, and the number of their tokens."""
    longest = max(len(each.ids) for each in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    labels = torch.full((len(batch), longest), -100)
    for row, each in enumerate(batch):
        ids[row, : len(each.ids)] = torch.tensor(each.ids)
        labels[row, each.num_prompt : len(each.ids)] = torch.tensor(each.ids[each.num_prompt :])
    # Padding stands behind the texts, where no token of a causal model sees it.
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids).logits
    targets = labels[:, 1:].flatten()
    nats = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets, reduction="sum", ignore_index=-100
    )
    return nats, int((targets != -100).sum())


@torch.no_grad()
def nats_per_token(model: Any, conversations: Sequence[Conversation]) -> float:
    """Returns minus the mean log likelihood of a token of the solutions."""
    rows = [loss_sum(model, [each]) for each in conversations]
    return float(sum(nats for nats, _ in rows)) / sum(num for _, num in rows)


def train_policy(base: str, options: Options, folder: Path) -> dict[str, float]:
    """Fine-tunes the base on worked solutions, all parameters; returns what it learned.

    Args:
        base: folder of the language model.
        options: what it is trained on.
        folder: of the policy.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    conversations = read_conversations(options.texts, tokenizer, options.num_texts + NUM_HELD_OUT)
    train, held_out = conversations[: options.num_texts], conversations[options.num_texts :]
    before = nats_per_token(model, held_out)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    batches = [train[at : at + BATCH] for at in range(0, len(train), BATCH)]
    for step, batch in enumerate(batches):
        progress = (step + 1) / len(batches)
        cosine = 0.5 * (1 + math.cos(math.pi * step / len(batches)))
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(progress / WARMUP, cosine)
        num_tokens = sum(len(each.ids) - each.num_prompt for each in batch)
        total = 0.0
        for at in range(0, len(batch), AT_ONCE):
            nats, _ = loss_sum(model, batch[at : at + AT_ONCE])
            (nats / num_tokens).backward()
            total += float(nats)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 5 == 0:
            print(f"policy: step {step} of {len(batches)}, {total / num_tokens:.3f}", flush=True)
    learned = {"before": before, "after": nats_per_token(model, held_out)}
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return learned


def shuffle_changes(base: str, policy: Path, folder: Path) -> None:
    """Writes the base with a policy's changes, in each tensor at random places."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    generator = torch.Generator().manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    changed = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).state_dict()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            change = (changed[name] - tensor).flatten()
            order = torch.randperm(len(change), generator=generator)
            tensor.add_(change[order].view_as(tensor))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(policy).save_pretrained(folder)


def reward_model(options: Options, seed: int) -> Path:
    """Trains a reward model on TruthfulQA; returns its folder."""
    from panoply.report.progress import RunLogger
    from workflows.cluster.run_folder import finished_metrics
    from workflows.preference import run_preference

    config = PreferenceConfig(
        pairs=(str(options.data / "pairs" / "truthfulqa.parquet"),),
        max_pairs_per_source=options.num_pairs,
        seed=seed,
        backbone=TrainedBackboneConfig(trained=LastLayers(), depth=0.6),
        schedule=ScheduleConfig(pairs_per_step=20),
        num_workers=0,
        store=str(options.work / "store"),
        report_to=("none",),
        out=str(options.work / f"rm{seed}"),
    )
    if finished_metrics(config) is None:
        run_preference(config, RunLogger())
    return options.work / f"rm{seed}" / "model"


def domain_pairs(options: Options) -> Path:
    """Returns a file of the domain's pairs: right and wrong solutions by models.

    Raises:
        ValueError: a question of theirs is one that the policy is trained on.
    """
    table = pq.read_table(options.data / "pairs" / "gsm8k_solutions.parquet")
    rows = [row for row in table.to_pylist() if row["subset"] == "model_vs_model"]
    lines = options.texts.read_text().splitlines()
    questions = {json.loads(line)["question"].strip() for line in lines}
    both = sum(row["prompt"][-1]["content"].strip() in questions for row in rows)
    if both:
        raise ValueError(f"{both} pairs of the domain are on questions of {str(options.texts)!r}")
    file = options.work / "gsm8k.parquet"
    kept = [{**row, "source": "gsm8k"} for row in rows]
    pq.write_table(table.from_pylist(kept, schema=table.schema), file)
    return file


def merged(options: Options, name: str, models: Sequence[Path], domain: Path) -> dict[str, Any]:
    """Merges models by `jobs.merge`; returns what it reports."""
    from panoply.report.progress import RunLogger
    from workflows.merge import run_merge

    config = MergeConfig(
        models=tuple(map(str, models)),
        pairs=(str(options.data / "pairs" / "truthfulqa.parquet"), str(domain)),
        shares=(0.5,) if name == "equal" else options.shares,
        max_pairs_per_source=options.num_judged,
        num_workers=options.num_workers,
        out=str(options.work / f"with-{name}"),
        report_to=("none",),
    )
    return run_merge(config, RunLogger())["merged"]


def main(options: Options) -> None:
    """Trains, merges, and prints tables for RESULTS."""
    import transformers

    from panoply.hub.backbone.pretrained import silence_libraries
    from panoply.hub.backbone.smollm2 import embedded_model

    silence_libraries()
    options.work.mkdir(parents=True, exist_ok=True)
    domain, base = domain_pairs(options), str(embedded_model())
    policy, shuffled, learned = (options.work / n for n in ("policy", "shuffled", "learned.json"))
    if not learned.is_file():
        shutil.rmtree(policy, ignore_errors=True)
        learned.write_text(json.dumps(train_policy(base, options, policy)))
    if not (shuffled / "tokenizer_config.json").is_file():
        shuffle_changes(base, policy, shuffled)
    first = reward_model(options, 0)
    figures: dict[str, Any] = {
        "setting": setting(torch, transformers, num_texts=options.num_texts),
        "nats per token": json.loads(learned.read_text()),
    }
    others = {"policy": policy, "shuffled": shuffled, "equal": reward_model(options, 1)}
    for name, folder in others.items():
        figures[name] = merged(options, name, [first, folder], domain)
        write_figures(options.json, figures)
    print_tables({name: figures[name] for name in others})


def print_tables(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints pairs ordered right by share, and the gain of the chosen share by source."""
    print("| merged with | distance | share | select | test |")
    print("| --- " * 5 + "|")
    for name, result in results.items():
        distance = result["models"][1]["distance"]
        for share, entry in result["curve"].items():
            chosen = ", chosen" if float(share) == result["share"] else ""
            cells = (
                f"{distance:.4f} | {share}{chosen} | {entry['select']:.3f} | {entry['test']:.3f}"
            )
            print(f"| {name} | {cells} |")
    print("\n| merged with | source | pairs | alone | merged | difference, length-balanced |")
    print("| --- " * 6 + "|")
    for name, result in results.items():
        for source, gain in result["gains"].items():
            low, high = gain["ci95"]
            interval = f"{gain['value']:+.3f} [{low:+.3f}, {high:+.3f}]"
            accuracies = f"{gain['alone']:.3f} | {gain['merged']:.3f}"
            print(f"| {name} | {source} | {gain['pairs']} | {accuracies} | {interval} |")


if __name__ == "__main__":
    run(main, Options)
