"""Every task reads, records and publishes on an object store as it does on a disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from distributed import Client

from pipelines.verify import verify
from tests.pipelines.every_task import AUDITS, audit_on, differs_from_the_disk
from tests.stores import Place


@pytest.mark.parametrize(("name", "kind"), AUDITS)
def test_an_audit_on_s3_publishes_the_bytes_of_one_on_a_disk(
    name: str, kind: str, s3: Place, client: Client, tmp_path: Path
) -> None:
    audit = audit_on(s3, client, name, kind)
    assert differs_from_the_disk(audit, str(tmp_path)) == {}
    assert verify(audit.location).problems == ()
