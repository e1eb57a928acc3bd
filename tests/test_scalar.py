"""Scalar models as folders: the same scores here, in transformers and in TRL; what is refused."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from panoply.config import Rendering
from panoply.data.schema import split_key
from panoply.hub.artefact.export import export_scalar
from panoply.hub.artefact.load import load_reward_model
from panoply.hub.artefact.manifest import ScalarManifest
from panoply.hub.artefact.model_card import write_card
from panoply.hub.artefact.scalar import ScalarModel, load_scalar_model, save_scalar_model
from panoply.hub.backbone.attention import attend_by_trees
from panoply.hub.backbone.pretrained import check_vocabulary
from panoply.hub.backbone.renderer import Renderer
from panoply.model.decoder import Decoder
from panoply.seal import seal
from tests.builders.models import (
    DEPTH,
    PROMPT,
    RESPONSES,
    SIZE,
    assert_the_same_everywhere,
    chats,
    save_small,
    small_card,
    small_decoder,
)
from tests.builders.tokenizers import TURNS, byte_tokenizer


@pytest.fixture
def tokenizer(tiny_model_folder):
    return AutoTokenizer.from_pretrained(tiny_model_folder)


@pytest.mark.parametrize("num_heads", [1, 3])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox"])
def test_transformers_alone_gives_the_same_scores_padded_or_not_alone_or_batched(
    family, num_heads, tokenizer, tmp_path
):
    save_small(tmp_path / "m", tokenizer, num_heads=num_heads, model=small_decoder(family))
    assert_the_same_everywhere(tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_scores_are_those_of_the_model_that_was_saved(tokenizer, tmp_path):
    decoder = small_decoder()
    heads_KD = save_small(tmp_path / "m", tokenizer, model=decoder)
    renderer = Renderer(tokenizer, Rendering())
    tree = renderer.render(PROMPT, RESPONSES).tree
    with torch.no_grad():
        wanted = [
            float(decoder(torch.tensor([tree.shared + b.tokens])).last_hidden_state[0, -1] @ head)
            for b in tree.branches
            for head in heads_KD
        ]
    assert load_scalar_model(tmp_path / "m").score(PROMPT, RESPONSES) == pytest.approx(
        wanted, rel=1e-4, abs=1e-5
    )


def test_trl_evaluates_a_model_as_we_do(tokenizer, tmp_path):
    from datasets import Dataset
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    folder = tmp_path / "m"
    save_small(folder, tokenizer, num_heads=2)
    model = load_scalar_model(folder)
    rows, margins = [], []
    for i in range(8):
        prompt = [{"role": "user", "content": f"Question {i}?"}]
        texts = [f"Answer {i * i}, at length.", f"No {i}."]
        scores = model.score(prompt, texts)
        margins.append(float(scores[0] - scores[1]))
        turns = [[{"role": "assistant", "content": text}] for text in texts]
        rows.append({"prompt": prompt, "chosen": turns[0], "rejected": turns[1]})
    trainer = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(folder),
        args=RewardConfig(
            output_dir=str(tmp_path / "trl"),
            per_device_eval_batch_size=4,
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    found = trainer.evaluate()
    loss = sum(math.log1p(math.exp(-m)) for m in margins) / len(margins)
    assert found["eval_loss"] == pytest.approx(loss, rel=1e-4)
    assert found["eval_margin"] == pytest.approx(np.mean(margins), rel=1e-4)
    assert found["eval_accuracy"] == np.mean(np.array(margins) > 0)
    assert 0 < found["eval_accuracy"] < 1


def test_the_score_of_an_ensemble_is_the_mean_of_its_standardized_members(tokenizer, tmp_path):
    heads_KD = save_small(tmp_path / "m", tokenizer, num_heads=3)
    model = load_scalar_model(tmp_path / "m")
    trees = [model.backbone.renderer.render(PROMPT, RESPONSES).tree]
    states = model.backbone.features(trees).last_RLD[:, -1].tolist()
    manifest, beta = model.manifest, 0.7
    members = [
        [
            (sum(w * z for w, z in zip(head, state, strict=True)) - center) / scale
            for head, center, scale in zip(
                heads_KD.tolist(), manifest.centers, manifest.scales, strict=True
            )
        ]
        for state in states
    ]
    constant = sum(c / s for c, s in zip(manifest.centers, manifest.scales, strict=True)) / 3
    scores = [sum(own) / 3 + constant for own in members]
    spread = [math.sqrt(sum((m - sum(own) / 3) ** 2 for m in own) / 3) for own in members]
    bound = [score - beta * own for score, own in zip(scores, spread, strict=True)]
    assert model.members_of_trees(trees).numpy() == pytest.approx(np.array(members), rel=1e-4)
    assert model.score(PROMPT, RESPONSES) == pytest.approx(scores, rel=1e-4)
    assert model.lower_bound(PROMPT, RESPONSES, beta) == pytest.approx(bound, rel=1e-4)
    assert (model.lower_bound(PROMPT, RESPONSES, 0.0) == model.score(PROMPT, RESPONSES)).all()


def test_one_head_scores_raw_and_disagrees_with_nobody(tokenizer, tmp_path):
    heads_KD = save_small(tmp_path / "m", tokenizer)
    model = load_scalar_model(tmp_path / "m")
    trees = [model.backbone.renderer.render(PROMPT, RESPONSES).tree]
    raw = model.backbone.features(trees).last_RLD[:, -1] @ heads_KD[0]
    assert torch.equal(model.score_trees(trees), raw)
    assert torch.allclose(model.members_of_trees(trees)[:, 0], (raw - 0.3) / 1.5)
    assert (model.lower_bound(PROMPT, RESPONSES, 9.0) == model.score(PROMPT, RESPONSES)).all()


def test_a_tokenizer_without_pad_and_without_template_is_enough(tmp_path):
    tokenizer = byte_tokenizer(None)
    tokenizer.pad_token = None
    save_small(tmp_path / "m", tokenizer)
    assert tokenizer.pad_token is None
    assert_the_same_everywhere(tmp_path / "m")


def test_the_pad_token_is_new_where_the_old_one_ends_every_turn(tokenizer, tmp_path):
    assert tokenizer.pad_token == tokenizer.eos_token == "<|end|>"
    save_small(tmp_path / "m", tokenizer)
    saved = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert saved.pad_token not in tokenizer.get_vocab()
    ids = [i for chat in chats() for i in saved.apply_chat_template(chat, return_dict=False)]
    assert saved.pad_token_id not in ids
    assert AutoConfig.from_pretrained(tmp_path / "m").pad_token_id == saved.pad_token_id


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("writes_bos", [True, False])
def test_the_beginning_is_marked_once_whoever_marks_it(adds_bos, writes_bos, tmp_path):
    tokenizer = byte_tokenizer("<s>" + TURNS if writes_bos else TURNS, adds_bos=adds_bos)
    save_small(tmp_path / "m", tokenizer)
    saved = AutoTokenizer.from_pretrained(tmp_path / "m")
    ids = saved.apply_chat_template(chats()[0], return_dict=False)
    assert ids.count(saved.bos_token_id) == (adds_bos or writes_bos)
    tree = load_scalar_model(tmp_path / "m").backbone.renderer.render(PROMPT, RESPONSES[:1]).tree
    assert list(tree.shared + tree.branches[0].tokens) == ids
    assert_the_same_everywhere(tmp_path / "m")


def test_a_full_vocabulary_grows_by_the_pad_token(tokenizer, tmp_path):
    tokenizer.add_tokens([f"<more-{i}>" for i in range(270 - len(tokenizer))])
    save_small(tmp_path / "m", tokenizer)
    assert AutoConfig.from_pretrained(tmp_path / "m").vocab_size == 271
    assert_the_same_everywhere(tmp_path / "m")


def test_a_vocabulary_smaller_than_the_tokenizer_is_told_with_the_fix(tokenizer):
    model = small_decoder()
    check_vocabulary(Renderer(tokenizer, Rendering()), model)
    tokenizer.add_tokens([f"<more-{i}>" for i in range(271 - len(tokenizer))])
    message = r"'<more-10>' the id 270, .* 270 embeddings .*resize_token_embeddings\(271\)"
    with pytest.raises(ValueError, match=message):
        check_vocabulary(Renderer(tokenizer, Rendering()), model)
    model.resize_token_embeddings(271)
    check_vocabulary(Renderer(tokenizer, Rendering()), model)


def test_another_template_than_that_of_training_is_refused(tokenizer, tmp_path):
    save_small(tmp_path / "m", tokenizer)
    changed = AutoTokenizer.from_pretrained(tmp_path / "m")
    changed.chat_template = changed.chat_template.replace("<|end|>", "<|end|> ")
    changed.save_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match="bytes, not"):
        load_scalar_model(tmp_path / "m")
    seal(tmp_path / "m")
    with pytest.raises(ValueError, match="restore the tokenizer files"):
        load_scalar_model(tmp_path / "m")


def test_saving_in_the_middle_of_training_changes_nothing_there(tokenizer, tmp_path):
    decoder = small_decoder(dtype=torch.bfloat16).train()
    assert attend_by_trees(Decoder(decoder, [DEPTH], trainable=True))
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    attention, vocabulary = decoder.config._attn_implementation, len(tokenizer)
    save_small(tmp_path / "m", tokenizer, model=decoder)
    assert decoder.training
    assert decoder.config._attn_implementation == attention
    assert len(tokenizer) == vocabulary
    assert all(parameter.requires_grad for parameter in decoder.parameters())
    assert all(torch.equal(before[name], value) for name, value in decoder.state_dict().items())
    # Trained in bfloat16, saved and scored in float32: transformers gives the same scores still.
    assert_the_same_everywhere(tmp_path / "m")
    assert len(set(load_scalar_model(tmp_path / "m").score(PROMPT, RESPONSES))) == len(RESPONSES)


def test_a_loaded_model_saved_again_is_the_same_model(tokenizer, tmp_path):
    save_small(tmp_path / "a", tokenizer, num_heads=2)
    first = load_scalar_model(tmp_path / "a")
    save_scalar_model(
        first.backbone.decoder.model,
        first.backbone.renderer,
        first.heads_KD,
        first.manifest,
        tmp_path / "b",
        [],
    )
    second = load_scalar_model(tmp_path / "b")
    assert second.manifest == first.manifest
    assert len(second.backbone.renderer.tokenizer) == len(first.backbone.renderer.tokenizer)
    assert (second.score(PROMPT, RESPONSES) == first.score(PROMPT, RESPONSES)).all()


def test_a_second_save_replaces_the_first_only_when_it_is_right(tokenizer, tmp_path):
    save_small(tmp_path / "m", tokenizer)
    before = load_scalar_model(tmp_path / "m").score(PROMPT, RESPONSES)
    with pytest.raises(ValueError, match="no sequence classifier"):
        save_small(tmp_path / "m", tokenizer, model=small_decoder("granite"))
    assert (load_scalar_model(tmp_path / "m").score(PROMPT, RESPONSES) == before).all()
    save_small(tmp_path / "m", tokenizer, model=small_decoder(seed=9))
    assert (load_scalar_model(tmp_path / "m").score(PROMPT, RESPONSES) != before).all()
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_folder_tells_its_kind_its_record_and_what_it_has_seen(tokenizer, tmp_path):
    key = split_key(PROMPT)
    save_small(tmp_path / "m", tokenizer, seen=[key])
    model = load_reward_model(tmp_path / "m")
    assert isinstance(model, ScalarModel)
    assert model.manifest == ScalarManifest.from_dict(json.loads(model.manifest.to_json()))
    assert model.manifest.sources == ("east", "west")
    assert np.load(tmp_path / "m" / "seen.npy").tolist() == [int(key[:16], 16)]
    with pytest.raises(ValueError, match="nothing to export"):
        export_scalar(tmp_path / "m", tmp_path / "out")


def test_the_readme_tells_method_data_metrics_and_how_to_call_it(tokenizer, tmp_path):
    save_small(tmp_path / "run" / "model", tokenizer, num_heads=2)
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "base_model: a/b" in card
    assert "The mean of 2 linear Bradley-Terry heads" in card
    assert "pairs of east, west" in card
    assert '* weights: {"east": 0.5, "west": 0.5}' in card
    assert "AutoModelForSequenceClassification.from_pretrained" in card
    assert "lower_bound(prompt" in card
    assert "| pairs | east | 20 | pppppppp |" in card
    assert "divided by 2 are log odds" in card
    assert "## Metrics" not in card
    metrics = {"pairs": {"score": {"log_loss": 0.61, "macro": {"accuracy": 0.7}}}}
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(metrics))
    write_card(tmp_path / "run" / "model")
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "| score | - | - | 0.700 |" in card
    assert "| score | 0.610 | - | - | - | - |" in card


def test_what_does_not_fit_is_refused_and_leaves_nothing(tokenizer, tmp_path):
    renderer, model = Renderer(tokenizer, Rendering()), small_decoder()
    with pytest.raises(ValueError, match=r"\[2, 32\].*\[1, D\]"):
        save_scalar_model(model, renderer, torch.zeros(2, SIZE), small_card(), tmp_path / "m", [])
    with pytest.raises(ValueError, match="no sequence classifier for GraniteModel"):
        save_small(tmp_path / "m", tokenizer, model=small_decoder("granite"))
    with pytest.raises(ValueError, match="must be positive"):
        small_card(2, scales=(1.0, 0.0))
    with pytest.raises(ValueError, match="one number a head"):
        small_card(2, centers=(1.0,))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "own.txt").touch()
    with pytest.raises(ValueError, match="holds something"):
        save_small(tmp_path / "m", tokenizer)
    assert [path.name for path in tmp_path.rglob("*")] == ["m", "own.txt"]
