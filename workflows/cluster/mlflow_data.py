"""The data files of a run as MLflow's datasets."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.huggingface_dataset_source import HuggingFaceDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

LONGEST_NAME = 500
"""Characters of the name of a data set."""
LONGEST_DIGEST = 36
"""Characters of the id of a data set."""


def dataset_inputs(data: Mapping[str, Mapping[str, Any]]) -> Iterator[DatasetInput]:
    """Yields a run's data files as MLflow's datasets, with the id and counts of their kind."""
    context = [InputTag(MLFLOW_DATASET_CONTEXT, "training")]
    for kind, summary in data.items():
        profile = {name: value for name, value in summary.items() if name not in ("id", "files")}
        for file in summary["files"] or [""]:
            name = f"{kind}: {Path(file).name or 'planted world'}"[:LONGEST_NAME]
            source = _dataset_source(file)
            dataset = MetaDataset(source, name=name, digest=str(summary["id"])[:LONGEST_DIGEST])
            entity = Dataset(
                **dataset.to_dict() | {"profile": json.dumps(profile), "source": source.to_json()}
            )
            yield DatasetInput(entity, context)


def _dataset_source(file: str) -> DatasetSource:
    """Returns MLflow's source of a file, URI or hub name; of the planted world for ''."""
    if not file:
        return CodeDatasetSource({"mlflow.source.name": "panoply.synthetic.planted"})
    if "://" not in file and not Path(file).expanduser().exists():
        return HuggingFaceDatasetSource(path=file)
    with warnings.catch_warnings(action="ignore"):
        place = file if "://" in file else str(Path(file).expanduser().absolute())
        return resolve_dataset_source(place)
