"""Reward models of LoRA adapters as folders: ours, and such as peft leaves."""

import torch
from transformers import AutoModelForSequenceClassification

from panoply.config.preference import LastLayers, Lora, TrainedBackboneConfig
from panoply.hub.artefact.members import save_adapter_members
from panoply.hub.policy.trainable import load_trainable
from tests.builders.models import small_card


def save_adapters(folder, base, *, num=1, seed=0, kind="adapters", **changes):
    """Saves a model of random adapters or layers; returns the parameters of its members."""
    trained = Lora(rank=4) if kind == "adapters" else LastLayers(num_last=1)
    backbone = TrainedBackboneConfig(model=str(base), dtype="float32", trained=trained)
    trainable = load_trainable(backbone, seed=seed)
    torch.manual_seed(seed)
    members = [
        {
            name: torch.randn(parameter.shape) * (1.0 if name == "head.weight" else 0.3)
            for name, parameter in trainable.net.named_parameters()
            if parameter.requires_grad
        }
        for _ in range(num)
    ]
    fields = {
        "members": kind,
        "template_hash": trainable.renderer.template_hash,
        "bos": tuple(trainable.renderer.bos),
        "rendering": trainable.renderer.rendering,
        "depth": trainable.num_layers,
        "backbone": str(base),
    }
    save_adapter_members(trainable, members, small_card(num, **fields | changes), folder, [])
    return members


def adapt(base, out, *, seed=11, **changes):
    """Saves a random LoRA adapter of a classifier, as peft does; returns the model with it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    fields = {"task_type": "SEQ_CLS", "target_modules": ["q_proj", "v_proj"]}
    model = get_peft_model(classifier, LoraConfig(init_lora_weights=False, **fields | changes))
    model.base_model.model.score.weight.data.normal_()
    model.save_pretrained(out)
    return model
