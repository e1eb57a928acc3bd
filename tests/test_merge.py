"""The command that merges: a share is chosen on pairs, the numbers are fitted, and it goes on."""

import json
import sys
from contextlib import suppress

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from panoply.config import Rendering
from panoply.config.merge import MergeConfig
from panoply.data.ingest import ingest_pairs
from panoply.data.read import Input
from panoply.data.schema import part_of
from panoply.hub.artefact.manifest import read_manifest
from panoply.hub.artefact.scalar import load_scalar_model, save_scalar_model
from panoply.hub.backbone.backbone import Backbone
from panoply.hub.backbone.renderer import Renderer
from panoply.hub.merge.merge import MergedFit
from panoply.report.progress import RunLogger
from panoply.report.results.merge import merged as merged_section
from tests.builders.models import DEPTH, save_domain_policy, small_card, small_decoder
from tests.builders.preference_runs import WORDS
from workflows.cluster.merged import (
    JudgedPairs,
    ScoredShare,
    best_share,
    restandardized,
    share_report,
)
from workflows.merge import run_merge

ENDS = {"east": "!.", "west": "?,"}
"""What the better and the worse response of a domain end in."""
NUM_ENDS = 5
"""So often that the features, which are of a random model's last token, are the end's."""


def domain_rows(domain, size, seed):
    """Pairs of a domain: the same words with the end that is liked there and with the other one.

    A letter more makes one of the two longer, by turns the better and the worse.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(size):
        words = " ".join(rng.choice(WORDS, rng.integers(1, 4)))
        prompt = [{"role": "user", "content": f"say {domain} {seed} {i}"}]
        better, worse = (NUM_ENDS * end for end in ENDS[domain])
        first = ("a", "") if i % 2 else ("", "a")
        pair = {"chosen": first[0] + words + better, "rejected": first[1] + words + worse}
        rows.append({"prompt": prompt, **pair, "source": domain})
    return rows


def fitted_head(backbone, rows, others):
    """The ridge of 1 on the differences of the domain's features and 0 on others', `[1, D]`."""
    x = torch.cat([differences(backbone, rows), differences(backbone, others)]).double()
    target = torch.cat([torch.ones(len(rows)), torch.zeros(len(others))]).double()
    gram = x.T @ x / len(x) + 1e-3 * torch.eye(x.shape[1])
    return torch.linalg.solve(gram, x.T @ target / len(x))[None].float()


def differences(backbone, rows):
    """Features of the better response less those of the worse, `[P, D]`."""
    gaps = []
    for row in rows:
        tree = backbone.renderer.render(row["prompt"], [row["chosen"], row["rejected"]]).tree
        features = backbone.features([tree]).last_RLD[:, -1]
        gaps.append(features[0] - features[1])
    return torch.stack(gaps)


@pytest.fixture(scope="module")
def domains(tmp_path_factory, tiny_tokenizer):
    """Reward models of two domains with heads on one backbone, and pairs of both domains."""
    root = tmp_path_factory.mktemp("domains")
    renderer = Renderer(tiny_tokenizer, Rendering())
    backbone = Backbone("a/b", small_decoder(), renderer, [DEPTH])
    rows_of = {domain: domain_rows(domain, 200, seed=i) for i, domain in enumerate(ENDS)}
    for number, (domain, other) in enumerate(zip(ENDS, reversed(ENDS), strict=True)):
        head = fitted_head(backbone, rows_of[domain], rows_of[other])
        card = small_card(sources=(domain,))
        save_scalar_model(small_decoder(), renderer, head, card, root / domain, [])
        rows = domain_rows(domain, 240, seed=10 + number)
        (root / f"{domain}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def test_a_share_chosen_on_select_wins_the_other_domain_and_loses_nothing(
    domains, cluster, tmp_path
):
    out = tmp_path / "out"
    config = MergeConfig(
        models=(str(domains / "east"), str(domains / "west")),
        pairs=(str(domains / "east.jsonl"), str(domains / "west.jsonl")),
        shares=(0.5, 1.0),
        fit_on_train=True,
        out=str(out),
        report_to=("none",),
    )
    result = run_merge(config, RunLogger())["merged"]
    assert list(result["curve"]) == ["0", "0.5", "1"]
    assert result["share"] == 0.5
    assert result["gains"]["west"]["ci95"][0] > 0
    assert result["gains"]["east"]["ci95"][1] >= 0
    assert result["gains"]["east"]["merged"] > 0.8
    assert result["at_random"] < result["gains"]["all sources"]["merged"]
    # The record has the numbers of the merged model's own scores on *calibrate*.
    model = load_scalar_model(out / "model")
    texts = texts_of_part(out / "data" / "pairs.parquet", model.manifest.seed, "calibrate")
    scores = np.concatenate([model.score(prompt, answers) for prompt, answers in texts])
    assert model.manifest.centers == pytest.approx([scores.mean()], rel=1e-3, abs=1e-3)
    assert model.manifest.scales == pytest.approx([scores.std()], rel=1e-3)
    assert model.manifest.temperature == pytest.approx(result["temperature"])
    assert model.manifest.temperature not in (1.0, 2.0)
    assert list(model.manifest.method["shares tried"]) == ["0", "0.5", "1"]
    assert not (out / "candidate").exists()
    assert "better than the reward model alone" in (out / "report.html").read_text()
    # A run that died behind its scores goes on with them, and gives the same.
    times = {file: file.stat().st_mtime_ns for file in (out / "shares").iterdir()}
    (out / "metrics.json").unlink()
    assert run_merge(config, RunLogger())["merged"] == result
    assert times == {file: file.stat().st_mtime_ns for file in (out / "shares").iterdir()}


def texts_of_part(path, seed, part):
    """Prompts of a part of the split, each with its two responses."""
    rows = pq.read_table(path).to_pylist()
    return [
        (row["prompt"], [row["chosen"], row["rejected"]])
        for row in rows
        if part_of(row["split_key"], seed) == part
    ]


@pytest.fixture
def judged(domains, tmp_path):
    """The pairs of both domains by their parts."""
    files = [Input(str(domains / f"{domain}.jsonl")) for domain in ENDS]
    return JudgedPairs.read(ingest_pairs(files, tmp_path / "data").path, 3, [])


def planted(judged, right):
    """Margins that order a share of each domain's pairs right, of every part alike."""
    margins = np.where(np.arange(len(judged.table.gap_P)) % 10 < 10 * right["east"], 1.0, -1.0)
    west = judged.table.source_P == "west"
    margins[west] = np.where(np.arange(west.sum()) % 10 < 10 * right["west"], 1.0, -1.0)
    return ScoredShare(margins, None)


def test_the_share_is_the_best_mean_over_sources_and_of_equals_the_smallest(judged):
    alone = planted(judged, {"east": 0.9, "west": 0.5})
    mixed = planted(judged, {"east": 0.9, "west": 0.8})
    worse = planted(judged, {"east": 0.3, "west": 0.8})
    assert best_share(judged, {0.0: alone, 0.2: mixed, 0.4: mixed, 0.6: worse}) == 0.2
    report = share_report(judged, {0.0: alone, 0.2: mixed, 0.6: worse}, 0.2)
    assert report["gains"]["west"]["value"] == pytest.approx(0.3, abs=0.12)
    assert report["gains"]["east"]["value"] == 0
    assert report["at_random"] == pytest.approx(
        np.mean([report["curve"][share]["test"] for share in ("0.2", "0.6")])
    )
    # An honest negative: where every share is worse, the reward model alone is the result.
    assert best_share(judged, {0.0: mixed, 0.2: alone, 0.4: worse}) == 0.0
    report = share_report(judged, {0.0: mixed, 0.2: alone}, 0.0)
    shown = merged_section(
        {"rule": "linear", "share": 0.0, "models": [], "tokens": {"gained": 0, "left_out": 0}}
        | report
    )
    assert any("No share orders more pairs" in str(block) for block in shown.blocks)


def test_a_gain_within_its_standard_error_is_none(judged):
    alone = planted(judged, {"east": 0.9, "west": 0.5})
    margins = alone.margin_P.copy()
    lost = judged.select[margins[judged.select] < 0]
    won = judged.select[margins[judged.select] > 0]
    margins[won[0]], margins[lost[:2]] = -1.0, 1.0  # by three changes one pair more is right
    assert best_share(judged, {0.0: alone, 0.3: ScoredShare(margins, None)}) == 0.0
    margins[lost[:6]] = 1.0
    assert best_share(judged, {0.0: alone, 0.3: ScoredShare(margins, None)}) == 0.3


def test_a_missing_score_moves_no_choice(judged):
    alone = planted(judged, {"east": 0.9, "west": 0.5})
    mixed = planted(judged, {"east": 0.9, "west": 0.8})
    holes = mixed.margin_P.copy()
    holes[::7] = np.nan
    assert best_share(judged, {0.0: alone, 0.3: ScoredShare(holes, None)}) == 0.3


def test_pairs_with_an_empty_part_are_refused(domains, tmp_path):
    file = tmp_path / "few.jsonl"
    file.write_text("\n".join(map(json.dumps, domain_rows("east", 2, seed=5))))
    path = ingest_pairs([Input(str(file))], tmp_path / "data").path
    with pytest.raises(ValueError, match=r"of the pairs there are \d of select, .*give more"):
        JudgedPairs.read(path, 3, [])


def test_heads_are_standardized_anew_on_some_texts():
    manifest = small_card(2, centers=(1.0, -2.0), scales=(0.5, 4.0))
    raw = np.random.default_rng(0).normal(size=(50, 2)) * [3, 0.2] + [5, 7]
    members = (raw - manifest.centers) / manifest.scales
    rows = np.arange(0, 50, 3)
    fit, z = restandardized(manifest, members, rows)
    for k in range(2):
        part = [float(raw[i, k]) for i in rows]
        mean = sum(part) / len(part)
        deviation = (sum((x - mean) ** 2 for x in part) / len(part)) ** 0.5
        assert fit.centers[k] == pytest.approx(mean)
        assert fit.scales[k] == pytest.approx(deviation)
        assert z[:, k] == pytest.approx((raw[:, k] - mean) / deviation)


def test_what_a_share_made_of_the_pairs_is_read_as_it_was_written(tmp_path):
    for fit in (None, MergedFit(float("inf"), (0.5, 1.0), (2.0, 3.0))):
        scored = ScoredShare(np.array([1.5, np.nan]), fit)
        scored.write(tmp_path / "share.npz")
        again = ScoredShare.read(tmp_path / "share.npz")
        assert again.fit == fit
        np.testing.assert_array_equal(again.margin_P, scored.margin_P)


def test_settings_that_cannot_be_are_refused():
    models = ("a", "b")
    for settings, message in (
        ({"models": ("a",)}, "a reward model and one model more"),
        ({"shares": (1.5,)}, "in \\(0, 1\\]"),
        ({"shares": (0.1, 0.2)}, "several beside `--pairs`"),
        ({"rule": "ties"}, "`base` must be a model for the rules"),
        ({"base": "c"}, "`base` must be a model for the rules"),
        ({"rule": "slerp", "models": ("a", "b", "c")}, "two models for the rule 'slerp'"),
        ({"density": 0.0}, "density"),
    ):
        with pytest.raises(ValueError, match=message):
            MergeConfig(**{"models": models} | settings)
    assert MergeConfig(models=("a", "b", "c")).tried_shares() == pytest.approx((2 / 3,))
    tried = MergeConfig(models=models, pairs=("p.jsonl",), shares=(0.4, 0.2)).tried_shares()
    assert tried == (0.0, 0.2, 0.4)
    assert len(MergeConfig(models=models, pairs=("p.jsonl",)).tried_shares()) == 6


def test_the_job_merges_and_tells_a_mistake_in_one_sentence(
    small_models, tiny_tokenizer, tmp_path, capsys, monkeypatch
):
    from jobs.merge import main

    scalar, gated, out = small_models["scalar"], small_models["gated"], tmp_path / "out"
    policy = save_domain_policy(tmp_path / "policy", tiny_tokenizer)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["merge", *map(str, words), "--report-to", "none"])
        with suppress(SystemExit):
            main()
        captured = capsys.readouterr()
        return " ".join((captured.out + captured.err).split())

    printed = run(scalar, scalar, "--out", out)
    assert "Models that were merged" in printed
    assert "No temperature was fitted" in printed
    assert f"results: {out}" in printed
    assert read_manifest(out / "model").temperature == 1.0
    assert "Models that were merged" in (out / "report.html").read_text()
    assert "finished before" in run(scalar, scalar, "--out", out)
    assert "other settings (models: " in run(scalar, policy, "--shares", 0.2, "--out", out)
    # What does not fit is told before anything is written.
    none = tmp_path / "none"
    assert "is a gated reward model" in run(scalar, gated, "--out", none)
    assert "how much of a policy does good" in run(scalar, policy, "--out", none)
    assert "a reward model and one model more" in run(scalar, "--out", none)
    assert not (none / "config.json").exists()
    printed = run(scalar, policy, "--shares", 0.2, "--out", none)
    assert "left out" in printed
    assert read_manifest(none / "model").method["weights"] == [0.8, 0.2]


def test_a_run_that_died_behind_its_model_goes_on(small_models, tmp_path):
    models = (str(small_models["scalar"]),) * 2
    config = MergeConfig(models=models, out=str(tmp_path / "out"), report_to=("none",))
    run_merge(config, RunLogger())
    before = (tmp_path / "out" / "model" / "model.safetensors").stat().st_mtime_ns
    (tmp_path / "out" / "metrics.json").unlink()
    metrics = run_merge(config, RunLogger())
    assert metrics["num_models"] == 2
    assert (tmp_path / "out" / "model" / "model.safetensors").stat().st_mtime_ns == before
