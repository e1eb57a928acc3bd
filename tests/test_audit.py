"""The audit of pairs: what is found, what of it is right, and what is made of it."""

import dataclasses
import json
import math
import re
import statistics
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from panoply.armorm.label_effect import DRAWS, TrustedPairs, cleaning_effect
from panoply.armorm.label_heads import (
    Labels,
    PairRoles,
    fit_labels,
    fitted_margins,
    held_out_margins,
    plain_labels,
)
from panoply.armorm.mixtures import fit_linear
from panoply.config import BackboneConfig
from panoply.config.audit import AuditConfig
from panoply.data.audit import (
    AuditFinding,
    counts_by_check,
    is_refusal,
    jaccard,
    proposed,
    repeated_share,
    structure_findings,
)
from panoply.data.audit_files import LABELED, pair_rows, swap_labels, write_cleaned, write_reviewed
from panoply.data.audit_verdicts import read_verdicts
from panoply.data.ingest import ingest_pairs
from panoply.data.read import Input
from panoply.data.schema import split_key, text_id
from panoply.measure.audit_report import planted_report, vote_findings, voter_report
from panoply.measure.votes import (
    cleaned_signs,
    count_votes,
    detection,
    false_shares,
    held_out_scaled,
    label_free_scale,
    lowest,
    separation,
)
from panoply.report.progress import RunLogger
from panoply.report.report import sections_of
from panoply.report.results.audit import verdict
from panoply.report.review import write_review
from tests.builders.models import save_small
from tests.builders.planted_labels import NUM_AUDITED, planted_labels
from tests.builders.ray_head import eventually
from workflows.audit import run_audit
from workflows.cluster.audited import read_audited

NAN = float("nan")
SHARED = Path(__file__).parents[2] / "shared" / "data" / "pairs"
GOOD = {
    "prompt": "How long does an egg take to boil until it is hard inside?",
    "chosen": "About ten minutes in boiling water, and a little more for large ones.",
    "rejected": "Put it into the oven and wait until somebody comes home from work.",
    "source": "cooks",
    "subset": "eggs",
}


def ingested(rows, folder):
    """The canonical file of some rows, each GOOD but for what it changes."""
    (folder / "data").mkdir(exist_ok=True)
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(json.dumps({**GOOD, **row}) for row in rows))
    return ingest_pairs([Input(file)], folder / "data").path


def checks(rows, folder):
    """The findings of the structural checks, by the number of the row."""
    path = ingested(rows, folder)
    numbers = {row["row_id"]: number for number, row in enumerate(pair_rows(path))}
    findings = structure_findings(pair_rows(path))
    return sorted((numbers[f.row_id], f.check, f.action) for f in findings)


# Structure


def test_pairs_in_order_have_no_finding(tmp_path):
    rows = [{"chosen": f"{GOOD['chosen']} {i}", "prompt": f"{i}: {GOOD['prompt']}"} for i in "abc"]
    assert checks(rows, tmp_path) == []


REFUSAL = "I'm sorry, but I can\u2019t help with that."


@pytest.mark.parametrize(
    ("row", "check"),
    [
        ({"rejected": GOOD["chosen"].replace("large", "big")}, None),
        ({"rejected": GOOD["chosen"].upper() + "!"}, "near_identical"),
        ({"chosen": REFUSAL, "rejected": "I cannot help you."}, "both_refuse"),
        ({"chosen": REFUSAL}, None),
        ({"rejected": f"You ask: {GOOD['prompt']}\nI do not know."}, "prompt_in_response"),
        ({"rejected": "and so on and on we go " * 8}, "repetition"),
        ({"rejected": "and so on and on we go " * 2}, None),
    ],
)
def test_a_fault_of_one_pair_is_named_and_only_to_be_looked_at(row, check, tmp_path):
    expected = [] if check is None else [(0, check, "look")]
    assert checks([row], tmp_path) == expected


SWAPPED = {"chosen": GOOD["rejected"], "rejected": GOOD["chosen"]}


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (SWAPPED, [(0, "contradiction", "drop"), (1, "contradiction", "drop")]),
        (
            {**SWAPPED, "subset": "hens"},
            [(i, "contradiction_across_subsets", "look") for i in (0, 1)],
        ),
        (
            {**SWAPPED, "source": "guests"},
            [(i, "contradiction_across_subsets", "look") for i in (0, 1)],
        ),
        ({}, [(1, "repeated", "drop")]),
        ({"subset": "hens"}, [(1, "repeated_across_subsets", "look")]),
        ({**SWAPPED, "prompt": "Another question of the same kind?"}, []),
    ],
)
def test_opposite_labels_are_a_fault_inside_one_subset_alone(other, expected, tmp_path):
    assert checks([{}, other], tmp_path) == expected


def test_lengths_beyond_the_percentiles_are_named_where_there_are_pairs_enough(tmp_path):
    rows = [{"prompt": f"{i}: why?", "chosen": "So " + "x" * (20 + i % 7)} for i in range(300)]
    rows[5]["chosen"] = "word " * 400
    named = [number for number, check, _ in checks(rows, tmp_path) if check == "length_ratio"]
    assert 5 in named
    assert len(named) <= 6
    assert not [f for f in checks(rows[:100], tmp_path) if f[1] == "length_ratio"]


def test_parts_of_the_checks_are_those_of_plain_python():
    assert jaccard("a b C", "c, b d") == 2 / 4
    assert jaccard("?", "!") == 1.0
    words = "a b c d " * 7
    grams = [tuple(words.split()[i : i + 4]) for i in range(25)]
    assert repeated_share(words) == pytest.approx(1 - len(set(grams)) / 25)
    assert repeated_share("a b c d a b c d") == 0.0
    assert not is_refusal("An egg. " * 40 + "I cannot say more.")


def test_of_several_proposals_on_a_row_the_strongest_counts():
    findings = [AuditFinding("a", "x", "", action) for action in ("look", "flip", "soften")]
    findings.append(AuditFinding("b", "x", "", "look"))
    assert proposed(findings) == {"a": "flip", "b": "look"}
    assert counts_by_check(findings) == {"x": {"look": 2, "flip": 1, "soften": 1}}


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are absent")
@pytest.mark.parametrize(
    ("name", "check", "pairs"),
    [("ukp_convarg", "contradiction", 3), ("dsp_domains", "contradiction_across_subsets", 243)],
)
def test_contradictions_of_real_data_are_all_found_and_explained(name, check, pairs):
    rows = []
    for number, row in enumerate(pq.read_table(SHARED / f"{name}.parquet").to_pylist()):
        sides = {f"{side}_id": text_id(row["prompt"], row[side]) for side in ("chosen", "rejected")}
        lengths = {f"{side}_length": len(row[side]) for side in ("chosen", "rejected")}
        rows.append({**row, **sides, **lengths, "row_id": str(number)})
    named = [f for f in structure_findings(rows) if f.check.startswith("contradiction")]
    assert {f.check for f in named} == {check}
    opposite = [re.search(r"label of (\d+)", f.evidence)[1] for f in named]
    assert len({frozenset((f.row_id, o)) for f, o in zip(named, opposite, strict=True)}) == pairs


# Votes


def test_votes_are_those_of_plain_python_and_a_missing_one_is_none():
    margins = np.array([[1.0, -2.0, NAN, 0.0], [3.0, -1.0, NAN, -1.0], [NAN, 0.5, NAN, -1.0]])
    votes = count_votes(margins)
    for i in (0, 1, 3):
        present = [m for m in margins[:, i] if not math.isnan(m)]
        assert votes.mean_P[i] == pytest.approx(statistics.fmean(present))
        assert votes.std_P[i] == pytest.approx(statistics.pstdev(present))
    assert np.isnan(votes.mean_P[2])
    assert votes.num_P.tolist() == [2, 3, 0, 3]
    assert votes.against_P.tolist() == [0, 2, 0, 2]  # a margin of 0 is against nothing


@pytest.mark.parametrize(
    ("margins", "is_suspect"),
    [
        ([-1.0], True),
        ([-3.0, 0.1], False),  # of two both have to be against
        ([-1.0, -1.0], True),
        ([-1.0, -1.0, 0.5], True),
        ([-1.0, -1.0, 9.0], False),  # the mean is for the label
        ([-3.0, 0.1, 0.1], False),
        ([NAN, NAN, -1.0], True),
        ([NAN, NAN, NAN], False),
    ],
)
def test_a_label_is_suspect_where_all_or_all_but_one_of_three_are_against(margins, is_suspect):
    votes = count_votes(np.array(margins)[:, None])
    assert bool(np.isfinite(votes.statistic_P[0])) == is_suspect


def test_swapping_labels_moves_no_scale():
    rng = np.random.default_rng(0)
    margins, fold = rng.normal(size=50), rng.integers(3, size=50)
    swapped = margins * np.where(rng.random(50) < 0.5, -1, 1)
    assert label_free_scale(margins) == label_free_scale(swapped) > 0
    assert np.isnan(label_free_scale([NAN, 0.0, 0.0]))
    scaled = held_out_scaled(margins, fold)
    assert np.abs(held_out_scaled(swapped, fold)) == pytest.approx(np.abs(scaled))
    others = sorted(abs(m) for m, f in zip(margins, fold, strict=True) if f != fold[0])
    assert scaled[0] == pytest.approx(margins[0] / statistics.median(others))


def test_false_shares_are_benjamini_and_hochberg_s_on_conformal_p_values():
    rng = np.random.default_rng(1)
    statistic, trusted = rng.normal(-1, 1, 40), rng.normal(0, 1, 30)
    statistic[::3] = np.inf
    p = [
        1.0 if math.isinf(t) else (1 + sum(other <= t for other in trusted)) / 31 for t in statistic
    ]
    order = sorted(range(40), key=p.__getitem__)
    expected, least = [0.0] * 40, 1.0
    for rank in range(40, 0, -1):
        least = min(least, p[order[rank - 1]] * 40 / rank)
        expected[order[rank - 1]] = least
    assert false_shares(statistic, trusted) == pytest.approx(expected)
    with pytest.raises(ValueError, match="no trusted pair"):
        false_shares(statistic, [])


def test_of_right_labels_no_more_are_found_than_is_allowed():
    rng = np.random.default_rng(2)
    shares = []
    for _ in range(200):
        statistic = np.concatenate([rng.normal(0, 1, 80), rng.normal(-2.5, 1, 20)])
        found = false_shares(statistic, rng.normal(0, 1, 150)) <= 0.2
        shares.append(found[:80].sum() / max(1, found.sum()))
        empty = false_shares(rng.normal(0, 1, 100), rng.normal(0, 1, 150)) <= 0.2
        shares[-1] = (shares[-1], float(empty.any()))
    of_found, of_none = np.mean(shares, axis=0)
    assert 0.05 < of_found <= 0.2
    assert of_none <= 0.2


def test_a_pair_is_swapped_where_all_agree_and_left_out_where_one_does_not():
    votes = count_votes(np.array([[-1.0, -1.0, 1.0], [-1.0, -1.0, 1.0], [-1.0, 0.1, 1.0]]))
    assert cleaned_signs(votes, np.array([True, True, False])).tolist() == [-1, 0, 1]


def test_detection_counts_hits_and_says_nothing_of_nothing():
    hits = detection(np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 1], bool))
    assert hits == {"found": 2.0, "precision": 0.5, "recall": pytest.approx(1 / 3)}
    nothing = detection(np.zeros(4, bool), np.zeros(4, bool))
    assert np.isnan([nothing["precision"], nothing["recall"]]).all()
    assert lowest([3.0, NAN, 1.0, 1.0], 2).tolist() == [False, False, True, True]


def test_separation_is_the_share_of_rightly_ordered_label_pairs():
    rng = np.random.default_rng(3)
    statistic, flipped = rng.integers(6, size=60) * 1.0, rng.random(60) < 0.3
    statistic[:5] = NAN
    low = [s for s, f in zip(statistic, flipped, strict=True) if f and not math.isnan(s)]
    high = [s for s, f in zip(statistic, flipped, strict=True) if not f and not math.isnan(s)]
    expected = statistics.fmean((h > s) + (h == s) / 2 for s in low for h in high)
    assert separation(statistic, flipped) == pytest.approx(expected)
    assert np.isnan(separation(statistic, np.zeros(60, bool)))


# Planted flips


def test_labels_are_swapped_on_purpose_among_the_pairs_that_are_named_alone(tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = [{"question": f"{i}?", "chosen": "yes" + "!" * (100 * (i % 4 == 0))} for i in range(400)]
    file.write_text("\n".join(json.dumps({**row, "rejected": "By no means"}) for row in rows))

    def read(**settings):
        files = {"pairs": (str(file),), "gold_pairs": (str(file),)}
        config = AuditConfig(**files, head="none", columns=("prompt=question",), **settings)
        return read_audited(config, (), tmp_path / "data", RunLogger())

    some = read(flipped=0.2, flipped_among="chosen_longer")
    before = [row["chosen_length"] > 20 for row in pair_rows(tmp_path / "data" / "pairs.parquet")]
    assert not (some.flipped_P & ~np.array(before)).any()
    assert some.flipped_P.mean() == pytest.approx(0.2, abs=0.04)
    assert some.gap_N[:400][some.flipped_P].max() < 0  # after the swap
    assert read(flipped=0.2).flipped_P.mean() == pytest.approx(0.2, abs=0.06)
    with pytest.raises(ValueError, match=r"`flipped` is 0.3 of all labels, but 0.25 of the pairs"):
        read(flipped=0.3, flipped_among="chosen_longer")


@pytest.fixture(scope="module", params=[0.0, 0.1, 0.25, 0.4])
def planted(request):
    """A world with a share of wrong labels, its voters, and what is found in it."""
    world = planted_labels(request.param)
    voters = world.electorate()
    fitted = fitted_margins(world.difference_ND, plain_labels(len(world.gap_N)), world.roles)
    report = planted_report(
        voters, world.flipped_P, world.gap_N[:NUM_AUDITED], fitted[:NUM_AUDITED]
    )
    return SimpleNamespace(share=request.param, world=world, voters=voters, rows=report["rows"])


def test_votes_find_planted_flips_better_than_every_control_of_as_many_rows(planted):
    votes = planted.rows["votes"]
    if not planted.share:
        assert votes["found"] == 0
        return
    controls = {name: row for name, row in planted.rows.items() if name != "votes"}
    assert {"random", "length", "head without folds"} < controls.keys()
    for name, row in controls.items():
        assert row["found"] == votes["found"]
        assert votes["precision"] > row["precision"], name
        assert votes["recall"] > row["recall"], name
        assert votes["at_budget"] >= row["at_budget"], name


def test_the_share_of_right_labels_is_kept_though_heads_learn_trusted_labels_out_of_fold():
    shares: dict[str, list[float]] = {"out of fold": [], "learned": []}
    for seed in range(6):
        world = planted_labels(0.1, seed)
        learned = world.margins["head"].copy()
        plain = plain_labels(len(world.gap_N))
        fitted = fitted_margins(world.difference_ND, plain, world.roles)
        learned[NUM_AUDITED:] = fitted[NUM_AUDITED:]
        for name, margin in (("out of fold", world.margins["head"]), ("learned", learned)):
            world.margins = {"head": margin}
            found = world.electorate().found_P
            shares[name].append((found & ~world.flipped_P).sum() / max(1, found.sum()))
    assert np.mean(shares["out of fold"]) <= 0.1
    assert np.mean(shares["learned"]) > 0.3  # a head is sure of trusted labels that it learned


def test_a_head_that_may_trust_some_labels_finds_more_of_the_wrong_ones_of_the_others():
    world = planted_labels(0.4)
    num = len(world.gap_N)
    untrusting = dataclasses.replace(world.roles, trusted_P=np.zeros(num, bool))
    accuracy = {}
    for name, roles in (("trusting", world.roles), ("untrusting", untrusting)):
        margins = held_out_margins(world.difference_ND, plain_labels(num), roles)
        right = margins[:NUM_AUDITED] * np.where(world.flipped_P, -1, 1)
        accuracy[name] = (right > 0).mean()
    assert accuracy["trusting"] > accuracy["untrusting"] + 0.03


def test_without_trusted_pairs_a_fixed_margin_decides_and_no_share_is_claimed(planted):
    voters = planted.world.electorate(trusted=np.array([], int))
    assert np.isnan(voters.false_share_P).all()
    suspect = voters.votes.statistic_P[:NUM_AUDITED]
    assert (voters.found_P == (suspect <= -1.0)).all()
    if planted.share:
        assert planted.world.flipped_P[voters.found_P].mean() > 2 * planted.share


def test_every_suspect_label_is_a_finding_with_the_margins_and_the_expected_share(planted):
    ids = [str(i) for i in range(NUM_AUDITED)]
    findings = vote_findings(planted.voters, ids, unsure_within=0.1)
    against = [f for f in findings if f.check == "votes_against"]
    assert {int(f.row_id) for f in against} == set(np.flatnonzero(planted.voters.found_P))
    signs = planted.voters.signs_P
    assert all((f.action == "flip") == (signs[int(f.row_id)] == -1) for f in against)
    for finding in against:
        assert re.search(r"^a .*, head .*; mean -.*; expected share .* 0\.\d+$", finding.evidence)
    unsure = [f for f in findings if f.check == "votes_unsure"]
    mean = planted.voters.votes.mean_P
    assert unsure
    assert all(abs(mean[int(f.row_id)]) <= 0.1 for f in unsure)
    assert {f.action for f in unsure} == {"soften"}


def test_no_voter_is_judged_on_labels_that_it_helped_to_set():
    world = planted_labels(0.25)
    judged = voter_report(world.electorate(), world.trusted)["a"]
    signs = world.electorate().without("a").signs_P
    right = world.margins["a"][:NUM_AUDITED] * signs
    assert judged["accuracy_cleaned"] == pytest.approx((right[signs != 0] > 0).mean())
    assert judged["accuracy_cleaned"] > judged["accuracy"] + 0.05
    # Were it judged on labels of its own making, stubbornness would pay.
    world.margins["a"] = -world.margins["a"] * 100
    stubborn = voter_report(world.electorate(), world.trusted)["a"]
    assert stubborn["accuracy_cleaned"] == pytest.approx(1 - judged["accuracy_cleaned"])


# Heads


def test_a_head_judges_pairs_whose_labels_it_has_not_seen():
    world = planted_labels(0.0)
    features, roles = world.difference_ND, world.roles
    first, num = roles.fold_P == 0, len(world.gap_N)
    before = held_out_margins(features, plain_labels(num), roles)
    sign = np.where(first, -1.0, 1.0)
    after = held_out_margins(features, Labels(sign, np.ones(num)), roles)
    assert after[first] == pytest.approx(before[first])
    seen = fitted_margins(features, Labels(sign, np.ones(num)), roles)
    assert (seen[first & roles.fitted_P] > 0).mean() < (after[first & roles.fitted_P] > 0).mean()


def test_a_weight_counts_as_often_as_its_pair_and_0_not_at_all():
    rng = np.random.default_rng(0)
    d, select = rng.normal(0.3, 1, (60, 4)), rng.normal(0.3, 1, (30, 4))
    twice = np.concatenate([d, d[:20]])
    weights = np.where(np.arange(60) < 20, 2.0, 1.0)
    one = fit_linear(d, [0.1], select, weights_P=weights).coefficients
    assert one == pytest.approx(fit_linear(twice, [0.1], select).coefficients, abs=1e-6)
    without = fit_linear(d, [0.1], select, weights_P=(np.arange(60) >= 20) * 1.0).coefficients
    assert without == pytest.approx(fit_linear(d[20:], [0.1], select).coefficients, abs=1e-6)


def test_too_few_pairs_for_a_head_are_an_error_that_says_what_to_do():
    world = planted_labels(0.0)
    labels = plain_labels(len(world.gap_N))
    labels.weight_P[30:] = 0
    with pytest.raises(ValueError, match=r"too few|fewer than 50 and 1.*--head none"):
        fit_labels(world.difference_ND, labels, world.roles)


def test_heads_on_cleaned_labels_beat_those_on_raw_and_on_as_many_random_rows_less():
    world = planted_labels(0.4)
    signs = world.electorate().signs_P
    cleaned = Labels(np.where(signs < 0, -1.0, 1.0), (signs != 0) * 1.0)
    rows, num = world.trusted, NUM_AUDITED
    keys = np.array([str(row) for row in rows], object)
    test = TrustedPairs(
        world.difference_ND[rows], world.gap_N[rows], keys, np.full(len(rows), "s", object)
    )
    roles = first_rows(world.roles, num)  # all trusted pairs test
    effect = cleaning_effect(world.difference_ND[:num], cleaned, roles, test, seed=0)
    arms = effect["arms"]
    assert arms["cleaned"]["accuracy"] > arms["raw"]["accuracy"] + 0.05
    assert effect["differences"]["cleaned - raw"]["ci95"][0] > 0
    assert effect["differences"]["cleaned - random rows left out"]["ci95"][0] > 0
    out = arms["raw"]["pairs"] - arms["random rows left out"]["pairs"]
    assert out == pytest.approx((signs != 1).sum(), abs=DRAWS)
    same = cleaning_effect(world.difference_ND[:num], plain_labels(num), roles, test, seed=0)
    assert same["differences"]["cleaned - raw"]["value"] == 0.0


def test_trusted_pairs_that_do_not_test_are_a_control_beside_cleaning():
    world = planted_labels(0.4)
    num = len(world.gap_N)
    tested = np.arange(NUM_AUDITED + 200, num)
    keys = np.array([str(row) for row in tested], object)
    test = TrustedPairs(
        world.difference_ND[tested], world.gap_N[tested], keys, np.full(len(keys), "s", object)
    )
    fitted = world.roles.fitted_P & (np.arange(num) < NUM_AUDITED + 200)
    roles = dataclasses.replace(world.roles, fitted_P=fitted)
    plain = plain_labels(NUM_AUDITED)
    effect = cleaning_effect(world.difference_ND, plain, roles, test, seed=0)
    arms = effect["arms"]
    assert arms["raw and trusted pairs"]["pairs"] == arms["raw"]["pairs"] + 200
    assert arms["raw and trusted pairs"]["accuracy"] > arms["raw"]["accuracy"] + 0.05
    assert effect["differences"]["cleaned - raw and trusted pairs"]["ci95"][1] < 0
    assert effect["differences"]["cleaned and trusted pairs - raw and trusted pairs"]["value"] == 0


def first_rows(roles, num):
    """The roles of the first pairs."""
    columns = (roles.fold_P, roles.fitted_P, roles.select_P, roles.trusted_P)
    return PairRoles(*(column[:num] for column in columns))


# Files


def test_a_cleaned_file_is_read_as_pairs_with_labels_swapped_and_weights(tmp_path):
    rows = [
        {"prompt": f"{i}: why?", "margin": 2.0, "weight": weight, "group": group}
        for i, weight, group in ((0, None, "g"), (1, 0.5, "g"), (2, None, None))
    ]
    path = ingested(rows, tmp_path)
    before = path.read_bytes()
    write_cleaned(path, np.array([1.0, -1, 1]), np.array([1.0, 0.5, 0]), tmp_path / "clean.parquet")
    assert path.read_bytes() == before
    clean = pq.read_table(tmp_path / "clean.parquet").to_pylist()
    assert [row["weight"] for row in clean] == [1.0, 0.25, 0.0]
    assert [row["label_flipped"] for row in clean] == [False, True, False]
    again = ingest_pairs([Input(tmp_path / "clean.parquet")], tmp_path / "again")
    assert dict(again.num_rows) == {"cooks": 3}
    first, second, third = pair_rows(again.path)
    assert second["chosen"] == GOOD["rejected"]
    assert [first["margin"], second["margin"]] == [2.0, None]
    assert first["split_key"] == second["split_key"] != third["split_key"]
    assert third["split_key"] == split_key(third["prompt"])


def test_swapped_labels_are_those_of_the_other_response_in_every_column(tmp_path):
    path = ingested([{}, {"prompt": "Another?"}], tmp_path)
    swap_labels(path, np.array([True, False]), tmp_path / "swapped.parquet")
    (old, same), (new, also) = pair_rows(path), pair_rows(tmp_path / "swapped.parquet")
    assert also == same
    for name in ("", "_id", "_length"):
        assert new[f"chosen{name}"] == old[f"rejected{name}"]
        assert new[f"rejected{name}"] == old[f"chosen{name}"]
    assert new["row_id"] == old["row_id"]


# Verdicts of persons


def verdict_file(folder, name, *lines):
    file = folder / name
    file.write_text("".join(json.dumps({"row_id": r, "preferred": p}) + "\n" for r, p in lines))
    return str(file)


SIDES = {"x": ("x+", "x-"), "y": ("y+", "y-"), "z": ("z+", "z-")}


def test_the_last_verdict_of_a_person_counts_and_the_majority_of_several(tmp_path):
    one = verdict_file(tmp_path, "1", ("x", "x+"), ("x", "x-"), ("y", "y+"), ("z", None))
    assert read_verdicts([one], SIDES) == {"x": "rejected", "y": "chosen", "z": "neither"}
    two = verdict_file(tmp_path, "2", ("x", "x-"), ("y", "y-"))
    three = verdict_file(tmp_path, "3", ("x", "x+"))
    read = read_verdicts([one, two, three], SIDES)
    assert read == {"x": "rejected", "y": "neither", "z": "neither"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{torn", "line 1 is no verdict"),
        ('{"row_id": "x"}', "line 1 is no verdict"),
        ('{"row_id": "other", "preferred": null}', "no audited pair has the row id 'other'"),
        ('{"row_id": "x", "preferred": "y+"}', "none of that row's"),
    ],
)
def test_what_is_no_verdict_on_these_pairs_is_refused(line, message, tmp_path):
    (tmp_path / "v.jsonl").write_text(line)
    with pytest.raises(ValueError, match=message):
        read_verdicts([str(tmp_path / "v.jsonl")], SIDES)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_verdicts([str(tmp_path / "none.jsonl")], SIDES)


def test_a_person_s_verdicts_become_a_source_of_pairs_beside_the_cleaned_ones(tmp_path):
    path = ingested([{"prompt": f"{i}: why?", "margin": 3} for i in range(3)], tmp_path)
    ids = [row["row_id"] for row in pair_rows(path)]
    opinions = {ids[0]: "chosen", ids[1]: "rejected", ids[2]: "neither"}
    assert write_reviewed(path, opinions, tmp_path / "reviewed.parquet") == 2
    write_cleaned(path, np.ones(3), np.ones(3), tmp_path / "clean.parquet")
    files = [Input(tmp_path / f"{name}.parquet") for name in ("clean", "reviewed")]
    both = ingest_pairs(files, tmp_path / "both")  # what a run with MORE reads
    assert dict(both.num_rows) == {"cooks": 3, "reviewed": 2}
    kept, turned = list(pair_rows(both.path))[3:]
    assert [kept["chosen"], turned["chosen"]] == [GOOD["chosen"], GOOD["rejected"]]
    assert [kept["margin"], kept["weight"], kept["subset"]] == [None, 1.0, "cooks"]
    assert write_reviewed(path, {}, tmp_path / "none.parquet") == 0
    assert not (tmp_path / "none.parquet").exists()
    assert pq.read_schema(tmp_path / "clean.parquet").equals(LABELED)


HOSTILE = "</script><script>document.title='taken'</script><!--"


def review_page(folder, num=3):
    """A page of pairs with hostile texts, and the canonical rows behind it."""
    rows = [{"prompt": f"{i}: {HOSTILE}", "chosen": f"{HOSTILE} yes {i}"} for i in range(num)]
    canonical = list(pair_rows(ingested(rows, folder)))
    findings = [AuditFinding(row["row_id"], "votes_against", "a -1", "flip") for row in canonical]
    assert write_review(canonical, findings[1:], folder / "review.html") == num - 1
    return folder / "review.html", canonical


def test_the_review_page_holds_no_label_and_no_finding_and_no_text_of_it_is_markup(tmp_path):
    page, canonical = review_page(tmp_path)
    text = page.read_text()
    data = re.search(r'id="rows">(.*?)</script>', text, re.S)[1]
    shown = json.loads(data)
    assert {row["row_id"] for row in shown} == {row["row_id"] for row in canonical[1:]}
    for row in shown:
        assert set(row) == {"row_id", "prompt", "responses"}
        ids = [response["id"] for response in row["responses"]]
        assert ids == sorted(ids)  # by the hash of the text, whatever the label
    for word in ("votes_against", "label_flipped", "a -1", HOSTILE):
        assert word not in text
    assert text.count("</script>") == 2


def test_a_person_judges_by_keyboard_and_saves_a_file_that_is_read(browser, tmp_path):
    page, canonical = review_page(tmp_path, num=4)
    tab = browser.new_page(viewport={"width": 360, "height": 740}, accept_downloads=True)
    tab.set_default_timeout(60_000)
    problems, requests = [], []
    tab.on("console", lambda message: problems.append(message.text))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(page.as_uri())
    assert tab.title() == "Which response is better?"
    order = json.loads(tab.locator("#rows").text_content())
    assert tab.locator("#first .text").inner_text() == order[0]["responses"][0]["text"]
    tab.keyboard.press("1")
    tab.keyboard.press("2")
    tab.keyboard.press("p")
    assert "preferred" in tab.locator("#second").get_attribute("class")
    assert tab.get_attribute("[data-key='2']", "aria-pressed") == "true"
    bottom = tab.locator("[data-key='s']").bounding_box()
    assert bottom["y"] + bottom["height"] <= 740  # the keys stay in sight
    tab.keyboard.press("n")
    tab.click("[data-key='0']")
    assert tab.locator("#progress").inner_text() == "Pair 3 of 3, 3 judged"
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    with tab.expect_download() as download:
        tab.keyboard.press("s")
    saved = tmp_path / "verdicts.jsonl"
    download.value.save_as(saved)

    def kept_over_a_visit():
        tab.reload()  # which may overtake what the page told the browser to store
        return tab.locator("#progress").inner_text().endswith("3 judged")

    eventually(kept_over_a_visit, 30, "three are judged")
    assert not problems
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requests)
    tab.close()
    sides = {row["row_id"]: (row["chosen_id"], row["rejected_id"]) for row in canonical}
    read = read_verdicts([str(saved)], sides)
    names = {True: "chosen", False: "rejected"}
    for row, place in ((order[0], 0), (order[1], 1)):
        is_chosen = row["responses"][place]["id"] == sides[row["row_id"]][0]
        assert read[row["row_id"]] == names[is_chosen]
    assert read[order[2]["row_id"]] == "neither"


# Settings and report


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pairs": ()}, "`pairs` must be at least one file"),
        ({"scorers": ("head=a/b",)}, "`scorers`.*run's head"),
        ({"train": True}, "`train`.*--gold-pairs"),
        ({"train": True, "gold_pairs": ("g",), "head": "none"}, "`train`"),
        ({"flipped": 0.5}, r"`flipped` must be in \[0, 0.5\)"),
        ({"max_false": 2.0}, "`max_false`"),
        ({"num_folds": 1}, "`num_folds`"),
    ],
)
def test_settings_that_cannot_be_run_are_refused_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        AuditConfig(**{"pairs": ("p.jsonl",), **settings})


def test_a_report_says_what_share_of_the_proposals_may_be_right():
    result = {
        "num_pairs": 1000,
        "quarantined": {"identical responses": 2},
        "checks": {"votes_against": {"flip": 90, "drop": 10}},
        "proposed": {"drop": 10, "flip": 90, "soften": 0, "look": 0},
        "suspect": 100,
        "max_false": 0.1,
        "voters": {"a": {"votes": 1000.0, "accuracy": 0.8, "accuracy_cleaned": NAN}},
        "reviewed": {"rows": 3, "chosen": 1, "rejected": 2, "neither": 0},
    }
    assert "100 of 1,000 labels; at most 10%" in verdict({"audit": result})
    assert "not known without trusted pairs" in verdict({"audit": {**result, "max_false": None}})
    assert [section.id for section in sections_of({"audit": result})] == ["findings", "voters"]
    assert verdict({}) == ""


# The whole run


SCORERS = """
from pathlib import Path

def likes(response):
    with Path({log!r}).open("a") as log:
        log.write(response + chr(10))
    if "silent" in response:
        return None
    return response.count("good") + 0.3 * (len(response) % 7)
"""


class Audited:
    """A folder with pairs, a quarter of whose labels an audit swaps, and a finished audit of them.

    One scorer writes down what it is asked and fails on one response; the other is a model that was
    trained on some of the prompts.
    """

    def __init__(self, folder, backbone, tokenizer):
        rng = np.random.default_rng(0)
        self.folder, self.asked, self.logger = folder, folder / "asked", RunLogger()
        for name, num in (("pairs", 320), ("gold", 240)):
            rows = []
            for i in range(num):
                words = rng.choice(["red", "blue", "tall", "wide"], size=6).tolist()
                chosen = f"good good {' '.join(words[:3])} {i}"
                row = {"prompt": f"{name} {i}?", "chosen": chosen, "source": "cooks"}
                rows.append({**row, "rejected": f"poor poor {' '.join(words[3:])} {i}"})
            if name == "pairs":
                rows[0]["chosen"] += " silent"
                rows.append({**rows[1], "chosen": rows[1]["rejected"]})
            self.file(name).write_text("\n".join(map(json.dumps, rows)))
        self.seen = [split_key([{"role": "user", "content": f"pairs {i}?"}]) for i in range(100)]
        save_small(folder / "model", tokenizer, seen=self.seen)
        (folder / "scorers.py").write_text(SCORERS.format(log=str(self.asked)))
        self.backbone = BackboneConfig(
            model=str(backbone), depths=(1.0,), poolings=("mean_response",)
        )
        self.report = self.run()

    def file(self, name):
        """A file of pairs."""
        return self.folder / f"{name}.jsonl"

    def run(self, **changes):
        """The numbers of a run."""
        settings = {
            "pairs": (str(self.file("pairs")),),
            "gold_pairs": (str(self.file("gold")),),
            "scorers": (
                f"likes=function:{self.folder}/scorers.py:likes",
                f"model={self.folder}/model",
            ),
            "flipped": 0.25,
            "train": True,
            "backbone": self.backbone,
            "store": str(self.folder / "store"),
            "out": str(self.folder / "out"),
            "report_to": ("none",),
        }
        return run_audit(AuditConfig(**{**settings, **changes}), self.logger)["audit"]


@pytest.fixture(scope="module")
def audited(cluster, tmp_path_factory, tiny_model_folder, tiny_tokenizer):
    return Audited(tmp_path_factory.mktemp("audited"), tiny_model_folder, tiny_tokenizer)


def test_an_audit_finds_swapped_labels_and_leaves_what_every_command_reads(audited):
    report, out = audited.report, audited.folder / "out"
    assert report["num_pairs"] == 320
    assert report["quarantined"] == {"identical responses": 1}
    voters = report["voters"]
    assert list(voters) == ["likes", "model", "head"]
    assert voters["likes"]["missing"] == 1  # never 0
    assert voters["likes"]["votes"] == 319
    assert voters["model"]["seen"] == 100
    assert voters["model"]["votes"] == 220
    rows = report["planted"]["rows"]
    assert report["planted"]["flipped"] > 60
    assert rows["votes"]["precision"] > 0.8 > 2 * rows["random"]["precision"]
    assert rows["votes"]["recall"] > 0.5
    with_trusted = {"raw and trusted pairs", "cleaned and trusted pairs"}
    arms = report["effect"]["arms"]
    assert set(arms) == {"raw", "cleaned", "random rows left out"} | with_trusted
    assert arms["raw and trusted pairs"]["pairs"] > arms["raw"]["pairs"] + 80
    findings = pq.read_table(out / "findings.parquet").to_pylist()
    assert {f["action"] for f in findings} >= {"flip", "drop"}
    clean = pq.read_table(out / "clean.parquet").to_pylist()
    assert sum(row["label_flipped"] for row in clean) == report["proposed"]["flip"]
    assert sum(row["weight"] == 0 for row in clean) == report["proposed"]["drop"]
    right = [row["chosen"].startswith("good") for row in clean if row["weight"]]
    before = [row["chosen"].startswith("good") for row in pair_rows(out / "data/flipped.parquet")]
    assert np.mean(right) > np.mean(before) + 0.1
    page = (out / "report.html").read_text()
    assert "Planted flips" in page
    assert "votes against: 5 of its pairs" in page
    shown = json.loads((out / "examples.json").read_text())["votes_against"]
    means = [float(re.search(r"mean ([-+.\d]+)", pair["evidence"])[1]) for pair in shown]
    assert means == sorted(means)
    assert "Which response is better?" in (out / "review.html").read_text()


def test_a_second_run_asks_nobody_and_takes_a_person_s_verdicts_above_all(audited):
    audited.asked.unlink()
    first = pq.read_table(audited.folder / "out" / "clean.parquet").to_pylist()[0]
    flipped = next(pair_rows(audited.folder / "out" / "data" / "flipped.parquet"))
    file = verdict_file(audited.folder, "v.jsonl", (flipped["row_id"], flipped["rejected_id"]))
    report = audited.run(verdicts=(file,))
    assert not audited.asked.exists()
    assert report["reviewed"] == {"rows": 1, "chosen": 0, "rejected": 1, "neither": 0}
    for name in ("voters", "planted", "checks"):
        assert json.dumps(report[name]) == json.dumps(audited.report[name])
    again = pq.read_table(audited.folder / "out" / "clean.parquet").to_pylist()[0]
    assert again["chosen"] == flipped["rejected"]
    assert again["row_id"] == first["row_id"]
    (labeled,) = pq.read_table(audited.folder / "out" / "reviewed.parquet").to_pylist()
    assert labeled["source"] == "reviewed"
    with pytest.raises(ValueError, match=r"flipped: 0.25 -> 0.1"):
        audited.run(flipped=0.1)
    assert 0 == audited.run(max_false=0.001)["suspect"] < report["suspect"]
    assert not audited.asked.exists()


def test_a_voter_without_a_vote_is_refused_with_its_name_and_cause(audited):
    seen = audited.folder / "seen.jsonl"
    seen.write_text("\n".join(audited.file("pairs").read_text().splitlines()[:60]))
    settings = {"head": "none", "train": False, "out": str(audited.folder / "refused")}
    with pytest.raises(ValueError, match=r"'model' was trained on the prompts of all audited"):
        audited.run(pairs=(str(seen),), **settings)
    assert not list((audited.folder / "refused").glob("scores*"))  # nobody was asked
    (audited.folder / "mute.py").write_text("def mute(response):\n    return None\n")
    mute = f"mute=function:{audited.folder}/mute.py:mute"
    with pytest.raises(ValueError, match=r"'mute' has both scores of none of the audited pairs"):
        audited.run(scorers=(mute,), **{**settings, "out": str(audited.folder / "mute")})


def test_structure_alone_needs_no_scorer_and_no_model(audited):
    report = audited.run(
        out=str(audited.folder / "plain"), scorers=(), head="none", train=False, flipped=0.0
    )
    assert report["voters"] == {}
    assert report["suspect"] == 0
    assert not (audited.folder / "plain" / "embedding").exists()
