"""What a test asks of a store that only other hosts can reach.

Run there as `python -m tests.faults.at_host store ENDPOINT IMAGES`, which makes a bucket and stores images in it, or
`python -m tests.faults.at_host published ENDPOINT OUT`, which prints the digest of every object that was published.
"""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np

from labelqa_dask.storage.location import StorageOptions
from labelqa_dask.storage.record import latest
from tests.pipelines.audits import Data, store_zarr
from tests.stores import REGION, Place, create_bucket
from tests.strategies import segmentation_data

BUCKET = "labelqa"


def main(command: str, endpoint: str, what: str) -> None:
    options = StorageOptions(endpoint_url=endpoint, region=REGION)
    place = Place(f"s3://{BUCKET}", options)
    if command == "store":
        n = int(what)
        labels, pred_probs = segmentation_data(n, 4, 24, 20, seed=6)
        data = Data("segmentation", labels.astype(np.uint8), pred_probs.astype(np.float32), np.arange(n))
        create_bucket(options, BUCKET, versioned=False)
        store_zarr(place("data.zarr"), data, labels=(1, 24, 20), ids=(n,))
    else:
        version = latest(place(what))
        assert version is not None
        paths = [entry.path for entry in version.location.entries() if not entry.path.startswith("_run/")]
        print(json.dumps({path: hashlib.sha256(version.location.read(path)).hexdigest() for path in paths}))


if __name__ == "__main__":
    main(*sys.argv[1:])
