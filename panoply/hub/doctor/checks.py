"""Checks of a reward model's input and of what moves its scores. Each has bitten users.

Every check scores the same few conversations, `EXAMPLE_CONVERSATIONS`. Differences are in units of
the scores' spread over them, see `panoply.measure.conformance.drift`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from panoply.config.steps import split_off_rule
from panoply.data.schema import Prompt
from panoply.hub.artefact.load import load_reward_model
from panoply.hub.doctor.scoring import in_dtype, rendered_examples, separate_sequences
from panoply.hub.doctor.step_check import steps
from panoply.hub.doctor.template_checks import template, turns
from panoply.hub.door.checkpoint import Checkpoint
from panoply.hub.door.fetch import fetch
from panoply.hub.door.loading import load_config, load_model, load_tokenizer
from panoply.hub.example_conversations import example_chat_ids, example_chats, sequences
from panoply.hub.published.process import ProcessModel
from panoply.hub.reward_model import RewardModel
from panoply.measure.conformance import BOUNDS, Finding, Verdict, drift, flips, judge
from panoply.model.device import best_device

BFLOAT16 = (0.05, 0.5)
"""Bounds of what bfloat16 may change; a model that computes in float32 is only warned."""
TIMED_TREES = 16


def examine(name: str | Path, *, trust_remote_code: bool = False) -> list[Finding]:
    """Loads a reward model and returns what its checks find; a refusal to load is a finding too.

    Args:
        name: as `load_reward_model` takes it.
        trust_remote_code: likewise.

    Raises:
        FileNotFoundError: there is no such model.
    """
    place, rule = split_off_rule(str(name))
    folder = fetch(place, code=trust_remote_code)
    try:
        with_rule = f"{folder}{rule.query if rule else ''}"
        model = load_reward_model(with_rule, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever a folder from outside raises is what is wrong with it
        return [Finding("layout", "does not load", "fail", _sentence(error))]
    return examine_loaded(model, folder)


def examine_loaded(model: RewardModel[Any], folder: Path) -> list[Finding]:
    """Returns what the checks of a loaded model find."""
    checks: list[Callable[[RewardModel[Any]], Finding]] = [
        layout,
        template,
        content,
        turns,
        beginning,
        padding,
        steps if isinstance(model, ProcessModel) else position,
        scale,
        batches,
        precision,
        truncation,
        speed,
    ]
    findings = [_finding(check, model) for check in checks]
    if (folder / "config.json").is_file() and model.provenance["kind"] in ("scalar", "linear"):
        findings.append(_finding(partial(parity, folder=folder), model, "parity"))
    return findings


def _finding(
    check: Callable[[RewardModel[Any]], Finding], model: RewardModel[Any], name: str = ""
) -> Finding:
    """Returns what a check finds; that it cannot be made is a finding too."""
    try:
        return check(model)
    except Exception as error:  # the model's libraries and template raise anything
        return Finding(name or check.__name__, "cannot be checked", "fail", _sentence(error))


def _sentence(error: Exception) -> str:
    """Returns an error's text, with its type where the text alone is no sentence."""
    if isinstance(error, OSError | ValueError):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def layout(model: RewardModel[Any]) -> Finding:
    """Reports kind, weights and dtype."""
    values = dict(model.provenance)
    text = f"{values['kind']}, weights {values['weights'][:12]}, {values['dtype']}"
    if values["kind"] != "value_head":
        return Finding("layout", text, "ok", values=values)
    advice = (
        "a value head is that of a reward model (LLaMA-Factory, GRM) or of a policy's critic "
        "(PPO), whose values are no rewards: look what it was trained on"
    )
    return Finding("layout", text, "warning", advice, values)


def content(model: RewardModel[Any]) -> Finding:
    """Checks that a text which spells the template's markers remains a text."""
    renderer = model.backbone.renderer
    turns, control_tokens = renderer.turns, renderer.control_tokens
    markers = "\n".join(turns.markers)
    marked = [name for name in control_tokens.names if name in markers]
    if not marked:
        return Finding(
            "content",
            f"turns are marked by plain words ({turns.shown.strip()!r}), which a text may hold",
            "warning",
            "a response can write turns of its own: score only texts that you trust, or train with "
            "a template of control tokens",
        )
    ids = set(renderer.tokenizer.convert_tokens_to_ids(marked))
    num_tokens: list[int] = []
    for response in ("b", f"b{''.join(marked)}b"):
        rendered = model.render([{"role": "user", "content": "a"}], [response, "c"])
        tokens = chain.from_iterable(sequences([each.tree for each in rendered]))
        num_tokens.append(sum(token in ids for token in tokens))
    if num_tokens[0] != num_tokens[1]:
        return Finding(
            "content",
            "a response that spells a control token gets the token itself",
            "fail",
            "the tokenizer normalizes texts into its control tokens: convert it to a fast one",
        )
    text = f"{', '.join(marked[:3])} in a text stay text"
    return Finding("content", text, "ok", values={"control_tokens": len(control_tokens.names)})


def beginning(model: RewardModel[Any]) -> Finding:
    """Counts the BOS tokens that are written here, by the usual two calls, and by verl."""
    renderer = model.backbone.renderer
    tokenizer = renderer.tokenizer
    bos = tokenizer.bos_token_id
    here = marks(sequences(rendered_examples(model))[0], bos)
    render = tokenizer.apply_chat_template(example_chats()[0], tokenize=False)
    once = marks(tokenizer(render, add_special_tokens=False)["input_ids"], bos)
    twice = marks(tokenizer(render, add_special_tokens=True)["input_ids"], bos)

    text = f"{here} here, {once} by the template, {twice} by template and tokenizer"
    verdict, advice = "warning", ""
    if bos is None:
        text, verdict = "the tokenizer has none", "ok"
    elif here > 1:
        verdict = "fail"
        advice = "the template writes it twice: remove one from chat_template.jinja"
    elif model.is_pairwise:
        text, verdict = f"{here}, as the published format has it", "ok"
    elif twice != here:
        advice = "elsewhere tokenize rendered text with add_special_tokens=False"
    elif once != here:
        advice = (
            "elsewhere apply_chat_template(tokenize=True) leaves it out: write it in the template"
        )
    elif renderer.turns.bos and not renderer.bos:
        text += f"; verl takes the template's first token, {tokenizer.bos_token!r}, off as BOS"
        advice = (
            "elsewhere no tokenizer puts it back: leave bos_token out of tokenizer_config.json, "
            "or call verl's custom function"
        )
    else:
        verdict = "ok"
    values = {"here": here, "template": once, "template_and_tokenizer": twice}
    return Finding("BOS", text, verdict, advice, values)


def marks(tokens: Sequence[int], bos: int | None) -> int:
    """Returns how many BOS tokens begin a sequence; some templates begin every turn with one."""
    return next((i for i, token in enumerate(tokens) if token != bos), len(tokens))


def padding(model: RewardModel[Any]) -> Finding:
    """Checks for pad tokens that move scores elsewhere; here no pad token is ever read."""
    tokenizer = model.backbone.renderer.tokenizer
    name, pad = tokenizer.pad_token, tokenizer.pad_token_id
    config_pad = getattr(model.backbone.decoder.config, "pad_token_id", None)
    rows = sequences(rendered_examples(model))
    verdict, advice = (
        "warning",
        "give tokenizer and config.json a pad token that no text renders to",
    )
    if pad is None:
        text = "no pad token: elsewhere no batches"
    elif any(pad in row for row in rows):
        where = "ends every render" if all(row[-1] == pad for row in rows) else "is in renders"
        text = f"pad token {name!r} {where}: elsewhere another token may be scored"
    elif config_pad != pad:
        text = f"pad token {pad} by the tokenizer, {config_pad} by config.json"
        text += ", which transformers reads"
        advice = f"set pad_token_id to {pad} in config.json"
    else:
        text, verdict, advice = f"{name!r}, in no render", "ok", ""
    values = {"pad_token": name, "tokenizer": pad, "config": config_pad}
    return Finding("padding", text, verdict, advice, values)


def position(model: RewardModel[Any]) -> Finding:
    """Names the token that is scored."""
    tokenizer = model.backbone.renderer.tokenizer
    last = {row[-1] for row in sequences(rendered_examples(model))}
    names = sorted(tokenizer.decode([token]) for token in last)
    text, verdict, advice = repr(names[0]), "ok", ""
    if len(last) > 1:
        text, verdict = f"the response's own last, {names[:3]}", "warning"
        advice = "the template closes no turn, so the score hangs on the response's last word"
    elif not model.is_pairwise and not last <= set(tokenizer.added_tokens_decoder):
        text, verdict = f"{names[0]!r}, text behind the end of the turn", "warning"
        advice = "send renders as they are: where text is stripped, another token is scored"
    return Finding("scored token", text, verdict, advice, {"scored": names})


def scale(model: RewardModel[Any]) -> Finding:
    """Checks that the scores of the examples are finite and differ."""
    scores = model.rate(rendered_examples(model))
    low, high, spread = float(scores.min()), float(scores.max()), float(scores.std())
    values = {"low": low, "high": high, "spread": spread}
    what = "preferences" if model.is_pairwise else "scores"
    text, verdict, advice = f"{what} {low:.4g} to {high:.4g}, spread {spread:.3g}", "ok", ""
    if not np.isfinite(scores).all():
        text, verdict = "scores are not finite", "fail"
        advice = "weights overflow or are not finite: fetch them again, or compute in float32"
    elif spread <= 1e-6 * max(1.0, abs(high)):
        text, verdict = f"all scores are {high:.4g}", "fail"
        advice = "the head was not trained, or is not the one of this backbone"
    elif not model.is_pairwise and not isinstance(model, ProcessModel):
        text += f", temperature {model.temperature:.3g}"
        values["temperature"] = model.temperature
        if not np.isfinite(model.temperature):
            verdict = "warning"
            advice = (
                "it ranks no better than chance where it was calibrated: train it on more pairs"
            )
    return Finding("scale", text, verdict, advice, values)


def batches(model: RewardModel[Any]) -> Finding:
    """Measures how far padded batches and token trees move a score from that alone."""
    trees = rendered_examples(model)
    with separate_sequences(model.backbone):
        alone = np.concatenate([model.rate([tree]) for tree in model.split(trees)])
        batch = model.rate(trees)
    drifts = {"batch": drift(batch, alone), "tree": drift(model.rate(trees), alone)}
    text = ", ".join(f"{value:.1e} in a {name}" for name, value in drifts.items())
    if not model.backbone.shares_prefixes:
        text = f"{drifts['batch']:.1e} in a batch; this model takes no trees"
    verdict = judge(max(drifts.values()), BOUNDS[model.provenance["dtype"]])
    advice = "" if verdict == "ok" else "score in batches of one, or compute in float32"
    return Finding("batch drift", f"{text}, of the spread", verdict, advice, drifts)


def precision(model: RewardModel[Any]) -> Finding:
    """Measures how far bfloat16 moves the scores from float32."""
    if model.provenance["kind"] == "layers":  # a copy would have those of one member
        return Finding("bfloat16", "not measured: each member has layers of its own", "ok")
    trees = rendered_examples(model)
    exact = in_dtype(model, torch.float32).rate(trees)
    rounded = in_dtype(model, torch.bfloat16).rate(trees)
    lost = drift(rounded, exact)
    turned, tied = flips(rounded, exact)
    values = {"drift": lost, "turned": turned, "tied": tied}
    verdict: Verdict = judge(lost, BFLOAT16)
    if verdict == "fail" and model.provenance["dtype"] == "float32":
        verdict = "warning"  # it is not what is computed
    pairs = len(exact) * (len(exact) - 1) // 2
    text = f"{lost:.1e} of the spread; {turned} of {pairs} pairs turn, {tied} tie"
    return Finding("bfloat16", text, verdict, "" if verdict == "ok" else "serve in float32", values)


def truncation(model: RewardModel[Any]) -> Finding:
    """Counts what is cut of a long conversation, and checks that the rest fits the model."""
    renderer = model.backbone.renderer
    limits, config = renderer.rendering, model.backbone.decoder.config
    prompt: Prompt = [{"role": "user", "content": "word " * (limits.max_prompt_tokens + 10)}]
    response = "word " * (limits.max_response_tokens + 10)
    cut = model.render(prompt, [response, response + "x"])[0]
    longest = max(len(row) for row in sequences([cut.tree]))
    positions = getattr(config, "max_position_embeddings", None)
    values = {
        "max_prompt_tokens": limits.max_prompt_tokens,
        "max_response_tokens": limits.max_response_tokens,
        "positions": positions,
        "prompt_tokens_cut": cut.prompt_tokens_cut,
        "responses_cut": cut.num_responses_cut,
    }
    text = (
        f"prompts keep their last {limits.max_prompt_tokens:,} tokens, responses their first "
        f"{limits.max_response_tokens:,} (of {positions or 0:,} positions); cut from a long one: "
        f"{cut.prompt_tokens_cut:,} tokens and {cut.num_responses_cut} responses, counted"
    )
    verdict, advice = "ok", ""
    if positions and longest > positions:
        verdict = "fail"
        advice = (
            f"a render of {longest:,} tokens goes beyond them: lower the limits in panoply.json"
        )
    return Finding("truncation", text, verdict, advice, values)


def speed(model: RewardModel[Any]) -> Finding:
    """Measures tokens per second on short conversations that share their prompts."""
    trees = rendered_examples(model) * TIMED_TREES
    model.rate(trees[:2])  # measures the budget once
    begun = time.perf_counter()
    model.rate(trees)
    seconds = time.perf_counter() - begun
    computed = sum(tree.num_tokens for tree in trees)
    separate = sum(tree.num_separate_tokens for tree in trees)
    values = {"tokens_per_second": computed / seconds, "separate_per_computed": separate / computed}
    where = f"{best_device().type}, {torch.get_num_threads()} threads"
    text = f"{computed / seconds:,.0f} tokens/s, {where}"
    return Finding("throughput", text, "ok", values=values)


@torch.inference_mode()
def parity(model: RewardModel[Any], folder: Path) -> Finding:
    """Compares with the scores that plain transformers gives the conversations, one by one."""
    from transformers import AutoModelForSequenceClassification

    if "score.weight" not in Checkpoint.open(folder).shapes:
        text = "transformers alone draws its head at random"
        return Finding("parity", text, "warning", "save the head under the name 'score'")
    tokenizer, config = load_tokenizer(folder), load_config(folder)
    config.num_labels = 1
    loader, dtype = AutoModelForSequenceClassification, model.backbone.decoder.dtype
    try:
        classifier = load_model(loader, folder, dtype=dtype, config=config, unused=None)
    except ValueError as error:
        return Finding("parity", "transformers does not load it", "warning", str(error))
    classifier = classifier.eval().to(best_device())
    rows = example_chat_ids(tokenizer)
    logits = [classifier(torch.tensor([ids], device=best_device())).logits for ids in rows]
    theirs = torch.cat(logits)[:, 0].double().cpu().numpy()
    trees = rendered_examples(model)
    same_tokens = [tuple(row) for row in rows] == sequences(trees)
    distance = drift(model.rate(trees), theirs)
    verdict = judge(distance, BOUNDS[model.provenance["dtype"]])
    tokens = "the same tokens" if same_tokens else "other tokens"
    advice = ""
    if verdict != "ok":
        advice = (
            "apply_chat_template gives other tokens: see BOS and template"
            if not same_tokens
            else "it scores another token (see padding), or the head is not the one of config.json"
        )
    text = f"{distance:.1e} of the spread, from {tokens}"
    return Finding("parity", text, verdict, advice, {"drift": distance, "same_tokens": same_tokens})
