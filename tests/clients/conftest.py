"""A server as a user starts it, over models small enough for a test, with in-process scores."""

import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from panoply.hub.artefact.load import load_reward_model
from tests.builders.models import make_run, save_small
from tests.builders.ports import free_ports
from tests.builders.tokenizers import TURNS, byte_tokenizer
from tests.clients.dialogs import DIALOGS

MERGES = [("Ċ", "Ċ"), ("ĊĊ", "Ċ"), ("Ġ", "Ġ"), ("t", "Ċ"), ("Ġ", "t"), (".", "Ċ")]
"""Of a tokenizer that, as most do, merges the white space at the two ends of a template's parts."""


@dataclass(frozen=True)
class Served:
    """A running server, and what it serves."""

    url: str
    folders: dict[str, Path]
    scores: dict[str, list[float]]
    """In-process scores of `DIALOGS` by each model."""
    tokenizer: object

    def at(self, model):
        """Address of one model's endpoints."""
        return f"{self.url}/models/{model}"


@pytest.fixture(scope="package")
def tokenizer():
    """A tokenizer of 265 tokens with a template of named turns."""
    return byte_tokenizer(TURNS, merges=MERGES)


@pytest.fixture(scope="package")
def classifier(tokenizer, tmp_path_factory):
    """What TRL's own `RewardTrainer` leaves after two steps."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, LlamaConfig
    from trl import RewardConfig, RewardTrainer

    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=270,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=1,
        initializer_range=0.3,
        max_position_embeddings=32768,
        pad_token_id=tokenizer.pad_token_id,
    )
    start = folder / "start"
    AutoModelForSequenceClassification.from_config(config).save_pretrained(start)
    tokenizer.save_pretrained(start)
    rows = [
        {
            "prompt": prompt,
            "chosen": [{"role": "assistant", "content": reply}],
            "rejected": [{"role": "assistant", "content": "No."}],
        }
        for prompt, reply in DIALOGS[20:28]
    ]
    settings = RewardConfig(
        output_dir=str(folder / "out"),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = RewardTrainer(
        model=str(start),
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(str(folder / "saved"))
    return folder / "saved"


@pytest.fixture(scope="package")
def served(tokenizer, classifier, tmp_path_factory):
    """The server: a gated model, a scalar one, TRL's classifier and a function."""
    root = tmp_path_factory.mktemp("clients")
    save_small(root / "scalar", tokenizer)
    make_run(root / "gated", tokenizer)
    folders = {
        "gated": root / "gated" / "model",
        "scalar": root / "scalar",
        "classifier": classifier,
    }
    scores = {name: in_process(folder) for name, folder in folders.items()}
    models = [f"{name}={folder}" for name, folder in folders.items()]
    (port,) = free_ports(1)
    with (root / "log").open("wb") as log:
        command = [sys.executable, "-m", "jobs.serve", "models", "--port", str(port), "--models"]
        process = subprocess.Popen(
            [*command, *models, "length=function:panoply.serve.verifiers:length"],
            stdout=log,
            stderr=log,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            wait_until_ready(url, process, root / "log")
            yield Served(url, folders, scores, tokenizer)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def in_process(folder):
    """Scores of `DIALOGS`, each by itself."""
    model = load_reward_model(folder)
    return [float(model.score(prompt, [reply])[0]) for prompt, reply in DIALOGS]


def wait_until_ready(url, process, log):
    """Waits until every model is ready."""
    ends = time.monotonic() + 300
    while True:
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < ends, log.read_text()[-2000:]
        try:
            states = httpx2.get(f"{url}/health", timeout=5).json()["models"]
            if set(states.values()) == {"ready"}:
                return
        except (httpx2.TransportError, ValueError, KeyError):
            pass
        time.sleep(0.5)


@pytest.fixture(scope="package")
def scalar_model(served):
    """The served scalar model, in this process."""
    return load_reward_model(served.folders["scalar"])
