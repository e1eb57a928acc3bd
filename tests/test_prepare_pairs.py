"""Pairs of a preference run: what is unusable is refused, what is unusual is counted."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer, LlamaConfig, LlamaModel

from panoply.config.preference import (
    DPO,
    SFT,
    Balanced,
    Full,
    HeadOnly,
    LossConfig,
    More,
    PreferenceConfig,
    TrainedBackboneConfig,
)
from panoply.data.tokens import TokenPairs
from panoply.hub.backbone.renderer import Renderer
from panoply.report.progress import RunLogger
from panoply.report.results.pairs import RAW
from tests.builders.preference_runs import (
    WORDS,
    make_task,
    other,
    small_config,
    steps_of,
    write_pairs,
)
from tests.builders.tokenizers import NO_SYSTEM
from workflows.cluster.preference_results import calibrate, measure
from workflows.cluster.prepare_pairs import read_pairs, tokenize, training_rows


def prepare(config, folder):
    found = read_pairs(config, folder / "data")
    tokens, cut = tokenize(config, found, folder / "data" / "tokens.parquet", RunLogger())
    return found, tokens, cut, *training_rows(config, found, tokens)


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def pair(number, chosen, rejected, **columns):
    prompt = [{"role": "user", "content": f"question {number}"}]
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "source": "a"} | columns


def test_trees_come_back_from_disk_as_they_were_rendered(tmp_path, tiny_model_folder):
    config = small_config(tiny_model_folder, write_pairs(tmp_path, (30,)))
    found, tokens, *_ = prepare(config, tmp_path)
    renderer = Renderer(AutoTokenizer.from_pretrained(tiny_model_folder), config.backbone.rendering)
    for row, wanted in enumerate(pq.read_table(found.path).to_pylist()):
        tree = renderer.render(wanted["prompt"], [wanted["chosen"], wanted["rejected"]]).tree
        assert tokens.tree(row) == tree
        assert tokens.column("num_tokens")[row] == tree.num_tokens


def test_sources_of_very_different_size_share_a_step_equally(tmp_path, tiny_model_folder):
    pairs = write_pairs(tmp_path, (200, 12))
    config = small_config(tiny_model_folder, pairs, weighting=More())
    _, _, _, rows, sources, told = prepare(config, tmp_path)
    assert sources == ("source0", "source1")
    sizes = np.bincount(rows.source_P[rows.train])
    assert sizes[0] > 10 * sizes[1]
    assert told["passes"]["source1"] > 5 * told["passes"]["source0"]
    _, logged = steps_of(make_task(config, tmp_path), 2)
    assert all(np.isfinite(step["loss"]) for step in logged)


def test_a_source_of_one_pair_is_trained_on_or_named(tmp_path, tiny_model_folder):
    pairs = write_pairs(tmp_path, (60, 1))
    seen = set()
    for seed in range(12):
        config = small_config(
            tiny_model_folder,
            pairs,
            seed=seed,
            weighting=Balanced(),
            schedule={"pairs_per_step": 4},
        )
        _, _, _, rows, sources, told = prepare(config, tmp_path / str(seed))
        if "source1" in sources:
            assert told["without_training_pairs"] == []
            assert (rows.source_P[rows.train] == 1).sum() == 1
        else:
            assert told["without_training_pairs"] == ["source1"]
            assert (rows.source_P[rows.scored] == 1).sum() == 1
        seen.add(sources)
    assert len(seen) == 2  # both happened


def test_pairs_beyond_the_limits_are_cut_and_counted(tmp_path, tiny_model_folder):
    long = " ".join(WORDS)
    rows = [pair(i, f"{WORDS[i % 12]} yes", f"{WORDS[i % 12]} no") for i in range(40)]
    rows += [pair(100 + i, f"{long} yes", f"{long} no") for i in range(10)]
    config = small_config(tiny_model_folder, (write(tmp_path / "p.jsonl", rows),))
    _, tokens, cut, found, _, told = prepare(config, tmp_path)
    assert cut["responses_cut"] == 20
    assert told["alike_when_cut"] == 10
    assert not tokens.alike()[found.train].any()
    limits = config.backbone.rendering
    most = limits.max_prompt_tokens + 2 * limits.max_response_tokens + 20
    assert tokens.column("num_tokens").max() <= most
    # The same counts when the run goes on and finds its trees on disk.
    assert TokenPairs.open(tmp_path / "data" / "tokens.parquet").notes == cut


def test_pairs_that_are_all_alike_once_cut_are_refused(tmp_path, tiny_model_folder):
    long = " ".join(WORDS)
    rows = [pair(i, f"{long} yes", f"{long} no") for i in range(40)]
    config = small_config(tiny_model_folder, (write(tmp_path / "p.jsonl", rows),))
    with pytest.raises(ValueError, match="no pair is left to train on: all are alike once cut"):
        prepare(config, tmp_path)


def test_tokens_added_to_the_tokenizer_alone_are_named_before_any_model_loads(
    tmp_path, tiny_tokenizer
):
    folder = tmp_path / "model"
    LlamaModel(
        LlamaConfig(
            vocab_size=260,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    ).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|new|>"])
    tokenizer.save_pretrained(folder)
    rows = [pair(i, f"<|new|> {i}", f"no {i}") for i in range(40)]
    config = small_config(folder, (write(tmp_path / "p.jsonl", rows),))
    with pytest.raises(
        ValueError, match=r"token '<\|new\|>' has id 260, but .* has 260 embeddings"
    ):
        prepare(config, tmp_path)


def test_a_tokenizer_without_pad_or_template_trains(tmp_path, tiny_model_folder):
    folder = tmp_path / "bare"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    tokenizer.chat_template, tokenizer.pad_token = None, None
    LlamaModel.from_pretrained(tiny_model_folder).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = small_config(folder, write_pairs(tmp_path, (30,)))
    _, logged = steps_of(make_task(config, tmp_path), 2)
    assert all(np.isfinite(step["loss"]) for step in logged)


def test_weights_and_margins_of_the_file_reach_the_loss(tmp_path, tiny_model_folder):
    rows = [
        pair(i, f"{WORDS[i % 12]} yes {i}", f"no {i}", margin=float(i % 3), weight=float(i % 2))
        for i in range(60)
    ]
    config = small_config(
        tiny_model_folder, (write(tmp_path / "p.jsonl", rows),), loss=LossConfig(use_margin=True)
    )
    _, _, _, kept, _, _ = prepare(config, tmp_path)
    assert (kept.weight_P[kept.train] == 1).all()  # those of weight 0 are not trained on
    assert set(kept.margin_P) == {0.0, 1.0, 2.0}
    task = make_task(config, tmp_path)
    with_margin = steps_of(task, 1)[1][0]["loss"]
    without = steps_of(other(task, "plain", loss=LossConfig()), 1)[1][0]["loss"]
    assert with_margin > without


def test_margins_are_refused_where_no_pair_has_one(tmp_path, tiny_model_folder):
    pairs = write_pairs(tmp_path, (30,))
    config = small_config(tiny_model_folder, pairs, loss=LossConfig(use_margin=True))
    with pytest.raises(ValueError, match=r"`loss.use_margin` is set, but no pair has a `margin`"):
        read_pairs(config, tmp_path / "data")


def test_a_pair_whose_system_turn_the_template_refuses_is_quarantined_and_told(
    tmp_path, tiny_model_folder
):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = NO_SYSTEM
    tokenizer.save_pretrained(folder)
    rows = [pair(i, f"{WORDS[i % 12]} yes {i}", f"no {i}") for i in range(60)]
    rows[37]["prompt"] = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "say"},
    ]
    config = small_config(folder, (write(tmp_path / "p.jsonl", rows),))
    lines = []

    class Ear(RunLogger):
        def info(self, text):
            lines.append(text)

    found = read_pairs(config, tmp_path / "data", Ear())
    assert len(found.names) == 59
    (reason,) = found.summary["quarantined"]
    assert "refuses roles ['system', 'user'" in reason
    assert any("1 rows in quarantine" in line and "no system turns" in line for line in lines)
    tokens, _ = tokenize(config, found, tmp_path / "tokens.parquet", RunLogger())
    assert len(tokens.alike()) == 59


def test_flipped_labels_are_a_share_of_all_parts_but_test(tmp_path, tiny_model_folder):
    config = small_config(tiny_model_folder, write_pairs(tmp_path, (400,)), flipped=0.3)
    found, _, _, rows, _, _ = prepare(config, tmp_path)
    test = found.table.split.of("test")
    assert not found.flipped_P[test].any()
    assert 0.24 < found.flipped_P[rows.train].mean() < 0.36
    assert (rows.label_P == np.where(found.flipped_P, 0, 1)).all()


def test_a_model_whose_margins_are_all_tied_is_half_right_and_sure_of_nothing(
    tmp_path, tiny_model_folder
):
    config = small_config(tiny_model_folder, write_pairs(tmp_path, (120,)))
    found = read_pairs(config, tmp_path / "data")
    tied = SimpleNamespace(margin_P=np.zeros(len(found.names)))
    scales, margins = calibrate({"score": tied}, found)
    metrics = measure(margins, scales, found)["pairs"]
    assert metrics["score"]["accuracy"] == 0.5
    assert metrics["score"]["ties"] == 1
    assert metrics["score" + RAW]["log_loss"] == pytest.approx(np.log(2))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"pairs": ()}, "name pair files"),
        ({"num_heads": 0}, "`num_heads` must be >= 1, got 0"),
        ({"flipped": 1.0}, r"`flipped` must be in \[0, 1\), got 1.0"),
        (
            {
                "loss": LossConfig(policy=DPO(reference="adapters_off")),
                "backbone": TrainedBackboneConfig(trained=Full()),
            },
            "'adapters_off' needs `backbone.trained` 'lora', got 'full'",
        ),
        ({"loss": LossConfig(policy=SFT())}, "'sft' trains the backbone, .* 'head-only' freezes"),
        ({"parallel": "fsdp"}, "'fsdp' shards what is trained"),
    ],
)
def test_what_cannot_go_together_is_refused_with_what_to_do(change, told):
    backbone = TrainedBackboneConfig(trained=HeadOnly())
    with pytest.raises(ValueError, match=told):
        PreferenceConfig(**({"pairs": ("p.jsonl",), "backbone": backbone} | change))
