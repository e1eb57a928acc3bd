"""The doctor: a healthy model passes, and each way of being sick is found and named."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from panoply.config import Rendering
from panoply.hub.artefact.load import load_reward_model
from panoply.hub.doctor.checks import examine, examine_loaded
from panoply.measure import conformance
from panoply.measure.conformance import drift, flips
from panoply.seal import seal
from tests.builders.models import (
    SIZE,
    make_pairwise,
    make_run,
    publish,
    save_small,
    small_classifier,
    small_decoder,
)
from tests.builders.tokenizers import TURNS, byte_tokenizer

CLOSED = TURNS.replace("<|end|>\n", "<|end|>")
"""A turn ends with its last token, and no text follows it."""


def well_kept(template=CLOSED):
    """A tokenizer whose pad token is its own, and that knows of no BOS."""
    tokenizer = marked("<s>" + template)
    tokenizer.bos_token = None
    return tokenizer


def marked(template, **changes):
    """A tokenizer whose pad token is its own, and that has a BOS."""
    tokenizer = byte_tokenizer(template, **changes)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    return tokenizer


def healthy(folder, tokenizer=None, model=None, **changes):
    tokenizer = tokenizer or well_kept()
    changes.setdefault("fields", {"pad_token_id": tokenizer.pad_token_id})
    return publish(folder, tokenizer, model or small_classifier(initializer_range=0.1), **changes)


def told(findings):
    return {found.check: found for found in findings}


def assert_flagged(findings, check, verdict, words):
    found = told(findings)[check]
    assert found.verdict == verdict
    assert words in found.finding
    assert found.advice


def test_a_healthy_model_passes_every_check(tmp_path):
    findings = examine(healthy(tmp_path))
    assert [f.check for f in findings if f.verdict != "ok"] == []
    assert list(told(findings)) == [
        *("layout", "template", "content", "turns", "BOS", "padding", "scored token", "scale"),
        "batch drift",
        *("bfloat16", "truncation", "throughput", "parity"),
    ]
    assert told(findings)["scored token"].finding == "'<|end|>'"
    assert told(findings)["parity"].values["same_tokens"]
    assert 0 < told(findings)["bfloat16"].values["drift"] < 0.05


def test_our_own_models_and_pairwise_ones_are_examined_too(tmp_path):
    save_small(tmp_path / "ours", well_kept(), model=small_decoder(initializer_range=0.1))
    findings = examine(tmp_path / "ours")
    # bfloat16 moves a head with random weights by more than a trained one.
    assert {f.check for f in findings if f.verdict != "ok"} <= {"bfloat16"}
    assert "parity" in told(findings)
    findings = examine(make_pairwise(tmp_path / "pairs", marked("<s>" + CLOSED, adds_bos=True)))
    assert [f.check for f in findings if f.verdict == "fail"] == []
    assert told(findings)["BOS"].values["here"] == 0
    assert told(findings)["batch drift"].verdict == "ok"


def test_a_gated_model_is_examined_in_the_same_way(tmp_path):
    folder, _ = make_run(tmp_path, well_kept())
    held = load_file(folder / "model.safetensors")
    held["head.unit"].fill_(1.0)  # that run left the head empty
    held["head.weight"].normal_(generator=torch.manual_seed(1))
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    seal(folder)
    findings = told(examine(folder))
    assert [name for name, found in findings.items() if found.verdict == "fail"] == []
    assert findings["batch drift"].verdict == "ok"
    assert findings["layout"].finding.startswith("gated, ")
    assert "parity" not in findings  # transformers has no such model


@pytest.mark.parametrize(
    ("tensors", "advice"),
    [
        ({"score.weight": None}, "holds no head"),
        ({"score.weight": torch.zeros(3, SIZE)}, "one score"),
        ({"score.weight": None, "v_head.weight": torch.zeros(1, SIZE)}, "not known"),
    ],
)
def test_a_model_that_does_not_load_is_told_with_the_reason(tensors, advice, tmp_path):
    (found,) = examine(healthy(tmp_path, tensors=tensors))
    assert (found.check, found.finding, found.verdict) == ("layout", "does not load", "fail")
    assert advice in found.advice


def test_a_template_that_writes_the_date_is_flagged(tmp_path):
    tokenizer = well_kept("{{ strftime_now('%d %b %Y') }}" + CLOSED)
    assert_flagged(examine(healthy(tmp_path, tokenizer)), "template", "warning", "held to 26 Jul")


def test_a_missing_template_is_flagged_in_a_model_of_ours(tmp_path):
    tokenizer = byte_tokenizer(None)
    tokenizer.bos_token = None
    save_small(tmp_path / "m", tokenizer)
    assert_flagged(examine(tmp_path / "m"), "template", "warning", "none; plain turns")


def test_a_second_beginning_is_flagged_where_others_would_write_it_and_fails_here(tmp_path):
    findings = examine(healthy(tmp_path / "a", marked("<s>" + CLOSED, adds_bos=True)))
    assert_flagged(findings, "BOS", "warning", "1 here, 1 by the template, 2 by template and")
    findings = examine(healthy(tmp_path / "b", marked("<s><s>" + CLOSED)))
    assert_flagged(findings, "BOS", "fail", "2 here")


def test_a_beginning_that_only_the_tokenizer_marks_is_flagged(tmp_path):
    findings = examine(healthy(tmp_path, marked(CLOSED, adds_bos=True)))
    assert_flagged(findings, "BOS", "warning", "1 here, 0 by the template")
    # What others read differs, and so do their scores.
    assert_flagged(findings, "parity", "fail", "from other tokens")


@pytest.mark.parametrize(("bos", "template"), [("<s>", "<s>" + CLOSED), ("<|start|>", CLOSED)])
def test_a_first_token_that_clients_take_off_as_bos_is_flagged(bos, template, tmp_path):
    tokenizer = marked(template)
    tokenizer.bos_token = bos
    findings = examine(healthy(tmp_path, tokenizer))
    words = f"1 by template and tokenizer; verl takes the template's first token, {bos!r}, off"
    assert_flagged(findings, "BOS", "warning", words)
    flagged = {name for name, found in told(findings).items() if found.verdict != "ok"}
    assert flagged - {"bfloat16"} == {"BOS"}


def test_pad_tokens_that_end_a_turn_lack_or_disagree_are_flagged(tmp_path):
    tokenizer = byte_tokenizer("<s>" + CLOSED)
    findings = examine(healthy(tmp_path / "a", tokenizer))
    assert_flagged(findings, "padding", "warning", "'<|end|>' ends every render")
    assert_flagged(findings, "parity", "fail", "from the same tokens")
    findings = examine(healthy(tmp_path / "b", well_kept(), fields={"pad_token_id": 7}))
    assert_flagged(findings, "padding", "warning", "7 by config.json")
    tokenizer.pad_token = None
    findings = examine(healthy(tmp_path / "c", tokenizer, fields={}))
    assert_flagged(findings, "padding", "warning", "no pad token")


def test_a_scored_token_that_text_may_lose_is_flagged(tmp_path):
    findings = examine(healthy(tmp_path / "a", well_kept(TURNS)))
    assert_flagged(findings, "scored token", "warning", r"'\n', text behind the end")
    tokenizer = well_kept("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}")
    findings = examine(healthy(tmp_path / "b", tokenizer))
    assert_flagged(findings, "scored token", "warning", "the response's own last")


def test_scores_that_are_all_the_same_or_not_finite_fail(tmp_path):
    head = {"score.weight": torch.zeros(1, SIZE)}
    findings = examine(healthy(tmp_path, tensors=head))
    assert_flagged(findings, "scale", "fail", "all scores are 0")
    model = load_reward_model(tmp_path)
    model.head.weight.fill_(np.nan)  # in a file it would be refused
    assert_flagged(examine_loaded(model, tmp_path), "scale", "fail", "not finite")


def test_a_score_that_hangs_on_its_company_fails(tmp_path):
    model = load_reward_model(healthy(tmp_path))

    def sick(_module, inputs, output):
        output.last_hidden_state[..., 0] += len(output.last_hidden_state)

    model.backbone.decoder.model.register_forward_hook(sick)
    assert_flagged(examine_loaded(model, tmp_path), "batch drift", "fail", "in a batch")


def test_a_model_that_bfloat16_changes_is_flagged(tmp_path):
    model = small_classifier(initializer_range=1.0, num_hidden_layers=6)
    findings = examine(healthy(tmp_path, model=model))
    assert_flagged(findings, "bfloat16", "warning", "of the spread")
    assert told(findings)["bfloat16"].values["drift"] > 0.05


def test_limits_beyond_the_positions_of_the_model_fail(tmp_path):
    small = small_decoder(initializer_range=0.1, max_position_embeddings=256)
    save_small(tmp_path / "m", well_kept(), model=small, rendering=Rendering())
    assert_flagged(examine(tmp_path / "m"), "truncation", "fail", "of 256 positions")


def test_a_head_that_transformers_would_draw_is_flagged(tmp_path):
    head = {"score.weight": None, "value_head.weight": torch.randn(1, SIZE)}
    tokenizer = well_kept()
    fields = {"architectures": ["RewardModel"], "pad_token_id": tokenizer.pad_token_id}
    findings = examine(healthy(tmp_path, tokenizer, tensors=head, fields=fields))
    assert_flagged(findings, "parity", "warning", "draws its head at random")


def test_drift_and_flips_are_those_of_plain_python():
    wanted, found = [1.0, 2.0, 4.0], [1.0, 4.5, 4.0]
    mean = sum(wanted) / 3
    spread = (sum((x - mean) ** 2 for x in wanted) / 3) ** 0.5
    assert drift(np.array(found), np.array(wanted)) == pytest.approx(2.5 / spread)
    assert drift(np.array([np.nan]), np.array([1.0])) == float("inf")
    assert drift(np.array([1.0, 2.0]), np.array([1.0, 1.0])) == float("inf")
    assert flips(np.array(found), np.array(wanted)) == (1, 0)
    assert flips(np.array([1.0, 1.0]), np.array([1.0, 2.0])) == (0, 1)
    assert [conformance.judge(x, (1.0, 2.0)) for x in (1.0, 2.0, 3.0)] == ["ok", "warning", "fail"]


@pytest.mark.slow
def test_the_job_prints_a_row_a_check_writes_json_and_exits_1_on_a_failure(tmp_path):
    healthy(tmp_path / "well")
    healthy(tmp_path / "sick", tensors={"score.weight": None})
    for name, code in (("well", 0), ("sick", 1), ("absent", 2)):
        words = ("jobs.doctor", str(tmp_path / name), "--json", str(tmp_path / f"{name}.json"))
        done = subprocess.run(
            [sys.executable, "-m", *words], capture_output=True, text=True, check=False, timeout=240
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    found = json.loads((tmp_path / "well.json").read_text())["findings"]
    assert {row["verdict"] for row in found} == {"ok"}
    assert json.loads((tmp_path / "sick.json").read_text())["findings"][0]["verdict"] == "fail"
    assert not (tmp_path / "absent.json").exists()
