"""Find wrong labels in data sets too large for memory: label quality scores on NumPy, Dask and stored arrays."""

from importlib.metadata import version
from typing import Any

__version__ = version("labelqa-dask")
__all__ = ["__version__", "open_run"]


def __getattr__(name: str) -> Any:
    if name == "open_run":
        from labelqa_dask.storage.run import open_run

        return open_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
