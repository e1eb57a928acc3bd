"""The door of model folders: every fault of a file is one sentence, and a row of the doctor."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from panoply.hub.artefact.load import load_reward_model
from panoply.hub.backbone.backbone import load_backbone
from panoply.hub.doctor import examine
from panoply.hub.door.checkpoint import Checkpoint
from panoply.seal import seal
from tests.builders.models import PROMPT, RESPONSES, SIZE, make_run, publish, save_small
from tests.builders.tokenizers import TURNS, byte_tokenizer

ROOT = Path(__file__).parent.parent
POINTER = "version https://example.invalid/spec/v1\noid sha256:00\nsize 12345\n"
INDEX = "model.safetensors.index.json"


def write_index(folder, **weight_map):
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def change(folder, file, **fields):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def put(folder, **tensors):
    held = load_file(folder / "model.safetensors")
    held |= {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})


def drop(folder, name):
    held = load_file(folder / "model.safetensors")
    del held[name]
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})


def cut(folder, file):
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[: len(whole) // 2])


def with_template(folder, text):
    (folder / "chat_template.jinja").write_text(text)


def pickled(folder, name="model.safetensors", other="pytorch_model.bin"):
    (folder / name).rename(folder / other)


def in_another_form(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).touch()


def wrapped(folder, name):
    held = load_file(folder / "model.safetensors")
    save_file({f"{name}{key}": value for key, value in held.items()}, folder / "model.safetensors")


def as_language_model(folder):
    change(folder, "config.json", architectures=["LlamaForCausalLM"])


def as_adapter(folder, **fields):
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")


def with_more_embeddings(folder):
    held = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    put(folder, model__embed_tokens__weight=torch.cat([held, held[:8]]))


def without_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()


SILENT = "{% for m in messages %}<|start|>{{ m['role'] }}<|end|>\n{% endfor %}<|start|>assistant\n"
FAULTS = {
    "weights are a pointer": (
        lambda f: (f / "model.safetensors").write_text(POINTER),
        r"model\.safetensors.* is a pointer .*git lfs pull",
    ),
    "an index is a pointer": (
        lambda f: (write_index(f), (f / INDEX).write_text(POINTER)),
        r"index\.json.* is a pointer",
    ),
    "a configuration is a pointer": (
        lambda f: (f / "config.json").write_text(POINTER),
        r"config\.json.* is a pointer",
    ),
    "a tokenizer is a pointer": (
        lambda f: (f / "tokenizer.json").write_text(POINTER),
        r"tokenizer\.json.* is a pointer",
    ),
    "weights are cut short": (
        lambda f: cut(f, "model.safetensors"),
        r"model\.safetensors.* is cut short .*fetch it again",
    ),
    "a header is of another size": (
        lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64),
        r"model\.safetensors.* is cut short or no safetensors",
    ),
    "a shard is missing": (
        lambda f: write_index(f, a="one.safetensors", b="two.safetensors"),
        r"lacks two\.safetensors: fetch it",
    ),
    "an index names a file elsewhere": (
        lambda f: write_index(f, a="/etc/one.safetensors"),
        r"names the file '/etc/one.safetensors' outside of its folder",
    ),
    "an index names a file above": (
        lambda f: write_index(f, a="../one.safetensors"),
        r"names the file '\.\./one.safetensors' outside of its folder",
    ),
    "an index names nothing": (write_index, "has no weight_map of file names"),
    "an index is torn": (
        lambda f: (write_index(f, a="one.safetensors"), cut(f, INDEX)),
        r"index\.json.* is no whole JSON",
    ),
    "there is only a pickle": (pickled, r"holds pytorch_model\.bin, a pickle, which is never read"),
    "there are shards of DeepSpeed": (
        lambda f: in_another_form(f, "global_step5/zero_pp_rank_0_mp_rank_00_model_states.pt"),
        r"holds zero_pp_rank_0_\S+, shards of DeepSpeed.*python zero_to_fp32\.py",
    ),
    "there are shards of FSDP": (
        lambda f: in_another_form(f, "pytorch_model_fsdp_0/__0_0.distcp"),
        r"holds __0_0\.distcp, shards of FSDP: .*accelerate merge-weights",
    ),
    "there are shards of verl": (
        lambda f: in_another_form(f, "model_world_size_8_rank_0.pt"),
        r"shards of verl: .*verl\.model_merger",
    ),
    "there is a file for llama.cpp": (
        lambda f: in_another_form(f, "model-Q4_K_M.gguf"),
        r"holds model-Q4_K_M\.gguf, weights for llama\.cpp",
    ),
    "shards have no index": (
        lambda f: pickled(f, other="model-00001-of-00002.safetensors"),
        r"holds model-00001-of-00002\.safetensors, shards: fetch model\.safetensors\.index\.json",
    ),
    "an adapter has no configuration": (
        lambda f: pickled(f, other="adapter_model.safetensors"),
        r"holds adapter_model\.safetensors, an adapter: fetch its adapter_config\.json",
    ),
    "a compiled model was saved": (
        lambda f: wrapped(f, "_orig_mod."),
        r"names that begin with '_orig_mod\.'.*save the model inside of the wrapper",
    ),
    "a model below an adapter was saved": (
        lambda f: wrapped(f, "base_model.model."),
        r"names that begin with 'base_model\.model\.'.*merge an adapter first",
    ),
    "there are more embeddings than the configuration says": (
        with_more_embeddings,
        r"'embed_tokens\.weight' .*\[278, 32\].* \[270, 32\]: write \"vocab_size\": 278 there",
    ),
    "a configuration is torn": (
        lambda f: cut(f, "config.json"),
        r"config\.json.* is no whole JSON",
    ),
    "a configuration is a list": (
        lambda f: (f / "config.json").write_text("[]"),
        r"config\.json.* holds no JSON object",
    ),
    "a configuration names other weights": (
        lambda f: change(f, "config.json", transformers_weights="other.safetensors"),
        r"config\.json.* names other weights",
    ),
    "a vocabulary is absurd": (
        lambda f: change(f, "config.json", vocab_size=400_000_000),
        r"'embed_tokens\.weight'|asks for [\d,]+ numbers|has shape",
    ),
    "layers are absurd": (
        lambda f: change(f, "config.json", num_hidden_layers=10**9),
        r"asks for 1,000,000,000 layers",
    ),
    "a width is another": (
        lambda f: change(f, "config.json", intermediate_size=64),
        r"tensor .*mlp.* has shape .* asks for|in another shape",
    ),
    "a model type is unknown": (
        lambda f: change(f, "config.json", model_type="mine"),
        "no layout.*'mine'",
    ),
    "a field is of another type": (
        lambda f: change(f, "config.json", hidden_size="wide"),
        r"config.* cannot be read",
    ),
    "a tokenizer is missing": (without_tokenizer, r"has no tokenizer .*fetch it too"),
    "a tokenizer is torn": (
        lambda f: cut(f, "tokenizer.json"),
        "the tokenizer in .* cannot be read",
    ),
    "there is no template": (
        lambda f: (f / "chat_template.jinja").unlink(),
        "has no chat template.*chat_template.jinja",
    ),
    "no template is the default": (
        lambda f: (
            (f / "additional_chat_templates").mkdir(),
            (f / "chat_template.jinja").rename(f / "additional_chat_templates" / "tools.jinja"),
        ),
        "has chat templates tools and none called 'default'",
    ),
    "a template writes no text": (
        lambda f: with_template(f, SILENT),
        "template in .* writes nothing of what the user says",
    ),
    "a template writes no reply": (
        lambda f: with_template(f, "{{ messages[0]['content'] }}<|end|>\n"),
        "template in .* writes nothing of what the assistant says",
    ),
    "a template refuses everything": (
        lambda f: with_template(f, "{{ raise_exception('never') }}"),
        r"template in .* refuses a user's turn and a reply \(never\)",
    ),
    "a template is torn": (
        lambda f: with_template(f, "{% for m in messages %}{{ m['content'] }}"),
        "template in .* refuses a user's turn and a reply",
    ),
    "a number is NaN": (
        lambda f: put(f, model__norm__weight=torch.full((SIZE,), float("nan"))),
        r"'norm\.weight' in .* holds NaN or infinity",
    ),
    "a head is infinite": (
        lambda f: put(f, score__weight=torch.full((1, SIZE), float("inf"))),
        r"'score\.weight' in .* holds NaN or infinity",
    ),
    "a quantization is unknown": (
        lambda f: change(f, "config.json", quantization_config={"quant_method": "nonesuch"}),
        r"quantized by 'nonesuch': install .*or name the checkpoint that is not quantized",
    ),
    "a quantization's library is absent": (
        lambda f: change(
            f,
            "config.json",
            quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True},
        ),
        r"bitsandbytes.*or name the checkpoint that is not quantized",
    ),
    "a head has another name": (
        lambda f: (put(f, rm_head__weight=torch.ones(1, SIZE)), drop(f, "score.weight")),
        r"has a head that is not known: rm_head\.weight",
    ),
    "a head is beside another": (
        lambda f: put(f, classifier__weight=torch.ones(1, SIZE)),
        r"has a head that is not known: classifier\.weight, score\.weight",
    ),
    "a head is beside a language model": (
        as_language_model,
        r"score\.weight beside the model is a reward head: write \"architectures\": "
        r"\[\"LlamaForSequenceClassification\"\] and \"num_labels\": 1 there",
    ),
    "a head has several labels": (
        lambda f: (
            put(f, score__weight=torch.ones(5, SIZE)),
            change(f, "config.json", id2label={str(i): f"L{i}" for i in range(5)}),
        ),
        r"has num_labels 5 .*score\.weight gives 5 numbers, labels of a classifier",
    ),
    "a value head is a pickle": (
        lambda f: ((f / "value_head.bin").touch(), as_language_model(f)),
        r"value head in value_head\.bin, a pickle, which is never read: .*value_head\.safetensors",
    ),
    "a value head is of another layout": (
        lambda f: put(f, v_head__out__weight=torch.ones(1, SIZE)),
        r"has a value head that is not known: v_head\.out\.weight",
    ),
    "a file of a value head has none": (
        lambda f: save_file({"other": torch.ones(2)}, f / "value_head.safetensors"),
        r"has a value head that is not known: other",
    ),
    "an adapter's configuration is torn": (
        lambda f: (f / "adapter_config.json").write_text('{"peft'),
        r"adapter_config\.json.* is no whole JSON",
    ),
    "an adapter is a pickle": (
        lambda f: (
            (f / "adapter_config.json").write_text("{}"),
            (f / "adapter_model.bin").touch(),
        ),
        r"lacks adapter_model\.safetensors and holds adapter_model\.bin, a pickle",
    ),
    "an adapter names no base": (
        lambda f: as_adapter(f, base_model_name_or_path=None),
        r"adapter_config\.json' names no model in base_model_name_or_path",
    ),
    "an adapter's base is elsewhere": (
        lambda f: as_adapter(f, base_model_name_or_path="/home/somebody/llama"),
        r"base model of the adapter in .*'/home/somebody/llama'.* into base_model_name_or_path",
    ),
    "an adapter is a prompt": (
        lambda f: as_adapter(f, peft_type="PROMPT_TUNING"),
        r"is of type 'PROMPT_TUNING', which puts tokens before a text and cannot be merged",
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return publish(tmp_path_factory.mktemp("published") / "m", byte_tokenizer(TURNS))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_folder_is_one_sentence_and_a_row_of_the_doctor(fault, whole, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(whole, folder)
    spoil, said = FAULTS[fault]
    spoil(folder)
    with pytest.raises((ValueError, OSError)) as raised:
        load_reward_model(folder)
    message = str(raised.value)
    assert re.search(said, message), message
    assert str(folder) in message
    assert "\n" not in message
    (finding,) = examine(folder)
    assert (finding.finding, finding.verdict) == ("does not load", "fail")
    assert finding.advice == message


def test_a_folder_without_a_fault_loads_also_by_the_links_of_a_cache(whole, tmp_path):
    blobs, linked = tmp_path / "blobs", tmp_path / "snapshots" / "m"
    shutil.copytree(whole, blobs)
    linked.mkdir(parents=True)
    for file in blobs.iterdir():
        (linked / file.name).symlink_to(Path("..") / ".." / "blobs" / file.name)
    wanted = load_reward_model(whole).score(PROMPT, RESPONSES)
    assert load_reward_model(linked).score(PROMPT, RESPONSES).tolist() == wanted.tolist()


def test_a_run_or_a_folder_of_adapters_names_the_models_inside(whole, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no config\.json of a model\. A run leaves one in OUT/model"
    ):
        load_reward_model(tmp_path)
    save_small(tmp_path / "run" / "model", byte_tokenizer(TURNS))
    with pytest.raises(FileNotFoundError, match=r"Try .*/run/model$"):
        load_reward_model(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text('{"out": "run"}')  # of the run
    with pytest.raises(FileNotFoundError, match=r"Try .*/run/model$"):
        load_reward_model(tmp_path / "run")
    for name in ("a", "b"):
        (tmp_path / "two" / name).mkdir(parents=True)
        (tmp_path / "two" / name / "adapter_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"Try .*/two/a or .*/two/b"):
        load_reward_model(tmp_path / "two")
    shutil.copytree(whole, tmp_path / "trained" / "checkpoint-500")
    with pytest.raises(FileNotFoundError, match=r"Try .*/trained/checkpoint-500$"):
        load_reward_model(tmp_path / "trained")
    (tmp_path / "above").mkdir()
    (tmp_path / "trained").rename(tmp_path / "above" / "trained")
    with pytest.raises(FileNotFoundError, match=r"Try .*/above/trained/checkpoint-500$"):
        load_reward_model(tmp_path / "above")
    file = tmp_path / "above" / "trained" / "checkpoint-500" / "model.safetensors"
    with pytest.raises(FileNotFoundError, match=r"is a file: name its folder, '.*checkpoint-500'"):
        load_reward_model(file)


def test_what_errors_advise_makes_the_model_load(whole, tmp_path):
    wanted = load_reward_model(whole).score(PROMPT, RESPONSES).tolist()
    advised = {
        "architectures": (as_language_model, {"architectures": ["LlamaForSequenceClassification"]}),
        "num_labels": (
            lambda f: change(f, "config.json", id2label={"0": "a", "1": "b"}),
            {"num_labels": 1, "id2label": None},
        ),
        "vocab_size": (with_more_embeddings, {"vocab_size": 278}),
    }
    for name, (spoil, fields) in advised.items():
        folder = tmp_path / name
        shutil.copytree(whole, folder)
        spoil(folder)
        with pytest.raises(ValueError, match=name):
            load_reward_model(folder)
        change(folder, "config.json", **fields)
        assert load_reward_model(folder).score(PROMPT, RESPONSES).tolist() == wanted


def test_no_code_of_a_folder_runs_and_nobody_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    tokenizer = byte_tokenizer(TURNS)
    gated, _ = make_run(tmp_path / "run", tokenizer)
    save_small(tmp_path / "scalar", tokenizer)
    marker = tmp_path / "ran"
    for folder in (gated, tmp_path / "scalar"):
        kinds = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification")
        names = ("C", "M", "M")
        mapped = {kind: f"evil.{name}" for kind, name in zip(kinds, names, strict=True)}
        change(folder, "config.json", auto_map=mapped)
        (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nC = M = None\n")
        seal(folder)
        load_reward_model(folder)
    assert not marker.exists()


def test_a_backbone_is_read_by_the_same_door(whole, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(whole, folder)
    pickled(folder)
    with pytest.raises(FileNotFoundError, match="a pickle, which is never read"):
        load_backbone(str(folder))
    shutil.rmtree(folder)
    shutil.copytree(whole, folder)
    drop(folder, "model.norm.weight")
    with pytest.raises(ValueError, match=r"lacks weights that would be random: norm\.weight"):
        load_backbone(str(folder))


def test_our_own_folder_with_an_absurd_configuration_is_refused_before_memory(tmp_path):
    gated, _ = make_run(tmp_path / "run", byte_tokenizer(TURNS))
    change(gated, "config.json", vocab_size=400_000_000)
    seal(gated)
    with pytest.raises(ValueError, match="fetch both again"):
        load_reward_model(gated)


def test_one_file_counts_before_an_index_as_in_transformers(whole, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(whole, folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    assert "score.weight" in Checkpoint.open(folder).shapes


READERS = re.compile(
    r"\.from_pretrained\(|\bload_file\(|\bsafe_open\(|\btorch\.load\(|snapshot_download\("
)
ALLOWED = {
    "panoply/hub/backbone/smollm2.py": "converts the embedded model's own file, checked by hash",
    "panoply/hub/policy/activation_cache.py": "reads its own cache",
    "panoply/hub/artefact/model_card.py": "writes an example",
    "jobs/export.py": "prints an example",
}
OWN_CHECKPOINTS = re.compile(r"torch\.load\([^)]*weights_only=True")


def test_nothing_reads_models_past_the_door():
    offenders = []
    for folder in ("panoply", "actors", "workflows", "jobs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name.startswith("panoply/hub/door/") or name in ALLOWED:
                continue
            for line in path.read_text().splitlines():
                code = OWN_CHECKPOINTS.sub("", line)  # a run's own, which never held a pickle
                if READERS.search(code) and not line.strip().startswith(("#", "*")):
                    offenders.append(f"{name}: {line.strip()}")
    assert not offenders
