"""Merged reward models as folders, written shard by shard: memory holds a layer, never a model.

Tokenizer, template and whatever else the reward model's folder holds stay as they are there, but
for the tokens that the tokenizer gains. The folder has the layout of the reward model's: ours with
a manifest, or that in which it was published.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

from panoply.files import whole_folder, write_json
from panoply.hub.artefact.classifier import check_vacant
from panoply.hub.artefact.manifest import MANIFEST, ScalarManifest
from panoply.hub.artefact.model_card import write_card
from panoply.hub.artefact.scalar import collapsed
from panoply.hub.door.checkpoint import WEIGHTS, Shape, read_fields
from panoply.hub.door.fetch import FILES
from panoply.hub.merge.merge import HEADS, Merge, MergedFit
from panoply.seal import SEAL, seal

SHARD_BYTES = 2**30
"""Bytes of a file of weights, and so of what memory holds of the merged model; a single tensor may
be larger."""
FLOAT_BYTES = 4
"""Bytes that a number is counted with; of weights in half precision a shard has half as many."""
SCORE = "score.weight"
"""Head of a classifier, which our heads collapse to."""
SEEN = "seen.npy"
INDEX = f"{WEIGHTS}.index.json"
WRITTEN_ANEW = frozenset({MANIFEST, SEAL, HEADS, INDEX})


def save_merged(
    merge: Merge,
    out: Path,
    *,
    fit: MergedFit | None = None,
    method: Mapping[str, Any] | None = None,
) -> None:
    """Writes a merged model as a folder of the reward model's layout.

    Where the others have no weight, it is the reward model, bit by bit.

    Args:
        merge: the models with their weights.
        out: new folder.
        fit: numbers of a model of ours that were fitted on the merged model's scores; None: the
            temperature is 1, and centers and scales are the means of the models'.
        method: what the manifest of a model of ours says of the merge, beside rule and weights.

    Raises:
        ValueError: `out` holds something, or a number in the weights is not finite.
    """
    check_vacant(out)
    if not any(merge.weights[1:]):
        merge = replace(merge, models=merge.models[:1], weights=merge.weights[:1], base=None)
    with whole_folder(out) as built:
        _copy_files(merge, built)
        score = None
        if merge.first.manifest:
            score = _write_record(merge, merge.first.manifest, built, fit, method or {})
        _write_weights(merge, built, score)
        if merge.first.manifest:
            write_card(built)
        seal(built)


def into_shards(shapes: Mapping[str, Shape]) -> list[list[str]]:
    """Returns the names of tensors by file, each of SHARD_BYTES or of one tensor that has more."""
    shards: list[list[str]] = []
    left = 0
    for name, shape in shapes.items():
        size = FLOAT_BYTES * math.prod(shape)
        if size > left:
            shards.append([])
            left = SHARD_BYTES
        shards[-1].append(name)
        left -= size
    return shards


def _copy_files(merge: Merge, folder: Path) -> None:
    """Copies what the reward model's folder holds beside its weights, with the tokens gained."""
    weights = set(merge.first.checkpoint.file_of.values())
    for file in sorted(merge.first.folder.iterdir()):
        is_kept = file.is_file() and any(file.match(pattern) for pattern in FILES)
        if is_kept and file not in weights and file.name not in WRITTEN_ANEW:
            shutil.copyfile(file, folder / file.name)
    vocabulary = merge.vocabulary
    if vocabulary and vocabulary.gained:
        vocabulary.tokenizer.save_pretrained(folder)
        fields = read_fields(folder / "config.json")
        fields.get("text_config", fields)["vocab_size"] = vocabulary.num_rows
        (folder / "config.json").write_text(json.dumps(fields, indent=1))


def _write_weights(merge: Merge, folder: Path, score: Tensor | None) -> None:
    """Writes the tensors of the merged model, a shard at a time.

    Args:
        merge: the models.
        folder: of the merged model.
        score: head of a model of ours; None: as the merge has it.
    """
    shards = into_shards(merge.first.checkpoint.shapes)
    file_of: dict[str, str] = {}
    num_bytes = 0
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        if len(shards) == 1:
            file = WEIGHTS
        tensors: dict[str, Tensor] = {}
        for name in names:
            tensor = score if name == SCORE and score is not None else merge.tensor(name)
            tensors[name] = tensor.contiguous()
            file_of[name] = file
            num_bytes += tensors[name].nbytes
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": num_bytes}, "weight_map": file_of})


def _write_record(
    merge: Merge,
    first: ScalarManifest,
    folder: Path,
    fit: MergedFit | None,
    method: Mapping[str, Any],
) -> Tensor:
    """Writes heads, manifest and seen prompts of a model of ours; returns the collapsed head.

    Data and prompts are those of all the reward models: what any has seen is seen.
    """
    heads_KD, means = merge.heads()
    records = [model.manifest for model in merge.models if model.manifest]
    numbers = fit or means
    record = {"merge": merge.rule, "weights": list(merge.weights), **method}
    data: dict[str, Any] = dict(first.data)
    if len(merge.models) == 1:  # the reward model itself
        numbers = MergedFit(first.temperature, first.centers, first.scales)
    elif fit is None:
        record["centers and scales"] = "means of the models', and the temperature is not fitted"
    if len(records) > 1:
        data = {}
        for number, each in enumerate(records, start=1):
            data |= {f"{kind} of model {number}": entry for kind, entry in each.data.items()}
    sources: list[str] = []
    for each in records:
        sources += each.sources
    manifest = replace(
        first,
        temperature=numbers.temperature,
        centers=numbers.centers,
        scales=numbers.scales,
        sources=tuple(dict.fromkeys(sources)),
        data=data,
        method={**record, "reward models": [dict(each.method) for each in records]},
    )
    save_file({"heads": heads_KD.contiguous()}, folder / HEADS)
    folders = [model.folder for model in merge.models if model.manifest]
    seen = [np.load(each / SEEN, allow_pickle=False) for each in folders]
    np.save(folder / SEEN, np.unique(np.concatenate(seen)), allow_pickle=False)
    (folder / MANIFEST).write_text(manifest.to_json())
    return collapsed(heads_KD, numbers.scales)[None]
