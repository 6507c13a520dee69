"""Mean features of rows as a model sees them, to compare stages by."""

import numpy as np

from lifelong.core.labelled import judging
from lifelong.core.model import Model
from lifelong.objectives.classification import Classification
from lifelong.streams.curriculum import ROWS
from lifelong.streams.scenarios import Rows, limited

BATCH = 16  # rows


def mean_features(model: Model, rows: Rows) -> np.ndarray:
    """(H,) mean pooled feature of at most ROWS rows, whatever their objective."""
    objective = Classification(head="linear")
    column = "image" if model.kind == "vision" else "text"
    plain = [
        {column: row.get(column, row.get("prompt", "")), "label": "any"} for row in limited(rows, ROWS, 0)
    ]
    examples = objective.encode(plain, model, ("any",)).examples
    total = 0.0
    with judging(model.network):
        for start in range(0, len(examples), BATCH):
            batch = objective.collate(examples[start : start + BATCH], model)
            batch = {key: value.to(model.device) for key, value in batch.items()}
            total = total + objective.features(model.network, batch).double().sum(0).cpu().numpy()
    return total / len(examples)
