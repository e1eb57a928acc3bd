"""A trained policy is exported as a folder that transformers loads by itself."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.dpo_trainer import DPOTrainer
from actors.policy_round import PolicyRound
from panoply.hub.policy.export import export_policy
from panoply.preference.distributed import Group
from tests.builders.policy_rounds import policy_task


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, tiny_policy_folder):
    folder = tmp_path_factory.mktemp("exported") / "round"
    DPOTrainer(policy_task(tiny_policy_folder, folder), Group()).run()
    return PolicyRound.read(folder).adapter


def test_the_merged_folder_speaks_as_the_adapted_policy(adapter, tiny_policy_folder, tmp_path):
    drift = export_policy(str(tiny_policy_folder), adapter, tmp_path / "policy")
    assert drift < 1e-4
    tokens = torch.tensor([AutoTokenizer.from_pretrained(tmp_path / "policy")("hello").input_ids])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    plain = AutoModelForCausalLM.from_pretrained(tiny_policy_folder)
    with torch.no_grad():
        found, before = merged(tokens).logits, plain(tokens).logits
        adapted = PeftModel.from_pretrained(plain, adapter).eval()(tokens).logits
    assert torch.allclose(found, adapted, atol=1e-4)
    assert not torch.allclose(found, before, atol=1e-2)
    assert not list(tmp_path.glob(".policy*"))


def test_what_cannot_be_exported_is_refused(adapter, tiny_policy_folder, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="which holds something"):
        export_policy(str(tiny_policy_folder), adapter, tmp_path / "full")
    with pytest.raises(FileNotFoundError, match=r"no adapter_config\.json"):
        export_policy(str(tiny_policy_folder), Path(tmp_path), tmp_path / "policy")
    assert not (tmp_path / "policy").exists()
