"""Exported scalar heads: the run's scores through transformers alone, and the model card."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
)

from panoply.hub.artefact.export import export_scalar
from panoply.hub.artefact.gated import pooled
from panoply.hub.artefact.load import load_reward_model
from panoply.hub.artefact.model_card import write_card
from tests.builders.models import (
    PROMPT,
    RESPONSES,
    chats,
    make_run,
    scores_by_transformers,
    small_backbone,
)


def own_scores(folder, weight):
    model = load_reward_model(folder)
    tree = model.backbone.renderer.render(PROMPT, RESPONSES).tree
    return (pooled(model.backbone.features([tree]), "last").double() @ weight).tolist()


@pytest.fixture
def tokenizer(tiny_model_folder):
    return AutoTokenizer.from_pretrained(tiny_model_folder)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox"])
def test_transformers_alone_gives_the_same_scores_padded_or_not_alone_or_batched(
    family, tokenizer, tmp_path
):
    folder, weight = make_run(tmp_path, tokenizer, family=family)
    done = export_scalar(folder, tmp_path / "out")
    assert done.drift < 1e-4
    wanted = own_scores(folder, weight)
    alone = scores_by_transformers(tmp_path / "out", [[chat] for chat in chats()])
    batched = scores_by_transformers(tmp_path / "out", [chats()])
    assert alone == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert batched == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_pad_token_is_new_and_pads_on_the_right(tokenizer, tmp_path):
    # The tokenizer pads with the token that ends every turn: a render ends in it.
    assert tokenizer.pad_token == tokenizer.eos_token == "<|end|>"
    folder, _ = make_run(tmp_path, tokenizer)
    export_scalar(folder, tmp_path / "out")
    exported = AutoTokenizer.from_pretrained(tmp_path / "out")
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert exported.pad_token not in tokenizer.get_vocab()
    assert config.pad_token_id == exported.pad_token_id
    assert exported.padding_side == "right"
    # 260 tokens in a vocabulary of 270 rows: none is added, and none is cut off.
    assert config.vocab_size == 270
    for chat in chats():
        ids = exported.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"]
        assert exported.pad_token_id not in ids
        assert ids[-1] == tokenizer.eos_token_id


def test_a_full_vocabulary_grows_by_the_pad_token(tokenizer, tmp_path):
    tokenizer.add_tokens([f"<more-{i}>" for i in range(270 - len(tokenizer))])
    folder, weight = make_run(tmp_path, tokenizer)
    export_scalar(folder, tmp_path / "out")
    assert AutoConfig.from_pretrained(tmp_path / "out").vocab_size == 271
    batched = scores_by_transformers(tmp_path / "out", [chats()])
    assert batched == pytest.approx(own_scores(folder, weight), rel=1e-4, abs=1e-5)


def test_the_exported_template_begins_a_sequence_where_the_tokenizer_did(tokenizer, tmp_path):
    from tokenizers import processors

    tokenizer.add_special_tokens({"bos_token": "<s>"})
    bos = ("<s>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[bos]
    )
    folder, weight = make_run(tmp_path, tokenizer)
    export_scalar(folder, tmp_path / "out")
    exported = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = exported.apply_chat_template(chats()[0], tokenize=True, return_dict=True)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    batched = scores_by_transformers(tmp_path / "out", [chats()])
    assert batched == pytest.approx(own_scores(folder, weight), rel=1e-4, abs=1e-5)


def test_a_bfloat16_backbone_is_exported_in_float32(tokenizer, tmp_path):
    folder, _ = make_run(tmp_path, tokenizer, dtype="bfloat16")
    assert export_scalar(folder, tmp_path / "out").drift < 1e-4
    assert len(set(scores_by_transformers(tmp_path / "out", [chats()]))) == len(RESPONSES)


def test_a_model_saved_in_bfloat16_has_the_features_it_was_trained_on(tokenizer, tmp_path):
    folder, _ = make_run(tmp_path, tokenizer, dtype="bfloat16")
    trained = small_backbone(tokenizer, dtype="bfloat16")
    trees = [trained.renderer.render(PROMPT, RESPONSES).tree]
    before, after = (b.features(trees) for b in (trained, load_reward_model(folder).backbone))
    assert torch.equal(before.last_RLD, after.last_RLD)


def test_other_features_than_the_last_token_are_refused_with_the_fix(tokenizer, tmp_path):
    folder, _ = make_run(tmp_path, tokenizer, pooling="mean_response")
    with pytest.raises(ValueError, match=r"'mean_response'.*--backbone\.poolings last"):
        export_scalar(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_not_written_into(tokenizer, tmp_path):
    folder, _ = make_run(tmp_path, tokenizer)
    with pytest.raises(ValueError, match="holds something"):
        export_scalar(folder, folder)
    with pytest.raises(FileNotFoundError, match=r"no panoply\.json"):
        export_scalar(tmp_path, tmp_path / "out")


def test_a_run_s_card_tells_objectives_scales_data_and_metrics(tokenizer, tmp_path):
    folder, _ = make_run(tmp_path, tokenizer)
    write_card(folder)
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: panoply\n")
    assert "base_model: a/b" in card
    assert "| editors-concise | 1 to 10 | 0.510 | 118 |" in card
    assert r"| preference\|east | learned from preferences | - | - |" in card
    assert "| pairs | east | 2,600 | pppppppp |" in card
    assert "| gate | 0.580 | [0.500, 0.700] | 0.700 |" in card
    assert "| gate | 0.600 | - | - | - | - |" in card
    assert "Intended use" in card
    (tmp_path / "metrics.json").unlink()
    write_card(folder)
    assert "## Metrics" not in (folder / "README.md").read_text()


def test_an_export_s_card_tells_how_to_call_it_and_only_its_own_metrics(tokenizer, tmp_path):
    folder, _ = make_run(tmp_path, tokenizer)
    done = export_scalar(folder, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "AutoModelForSequenceClassification.from_pretrained" in card
    assert "| linear bt | 0.580 | [0.500, 0.700] | 0.612 |" in card
    assert "| gate |" not in card
    assert "| pairs | east |" in card
    assert "| ratings |" not in card
    assert done.pad_token in card
    assert "times 1.25 are log odds" in card


def test_the_job_exports_and_tells_a_mistake_in_one_sentence(tokenizer, tmp_path, capsys):
    from jobs.export import main

    make_run(tmp_path, tokenizer)
    main(str(tmp_path / "model"), out=str(tmp_path / "out"))
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert "<|panoply_pad|>" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(str(tmp_path / "model"), out=str(tmp_path / "out"))
    assert stopped.value.code == 2
    assert "holds something" in " ".join(capsys.readouterr().out.split())


def test_an_architecture_without_a_sequence_classifier_is_refused(tokenizer, tmp_path):
    folder, _ = make_run(tmp_path, tokenizer, family="granite")
    with pytest.raises(ValueError, match="no sequence classifier for GraniteModel"):
        export_scalar(folder, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "metrics.json"}
