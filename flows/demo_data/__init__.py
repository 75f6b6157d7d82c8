"""Data of the demonstrations: real data, really trained models, and label errors known exactly.

Everything starts from the 1,797 handwritten digits or the 442 patients that come with scikit-learn, or, where these are
too few, from a simulation of thrown balls. A known share of the labels
is made wrong first; only then are models trained, on the wrong labels too, as in real life. Every prediction
is out of sample: it comes from models that saw neither the example nor its label. The truth about which
labels are wrong is kept for scoring an audit and is never shown to a model.

Each public module makes the data of the task that it is named after, by its function `make`; `diabetes` is a second set
for regression.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType

from flows.demo_data._data import DemoData, Maker

__all__ = ["MAKERS", "DemoData", "Maker"]

MAKERS: Mapping[str, Maker] = MappingProxyType(
    {
        module.name: importlib.import_module(f"{__name__}.{module.name}").make
        for module in pkgutil.iter_modules(__path__)
        if not module.name.startswith("_")
    }
)
"""The data of the demonstration for each task."""
