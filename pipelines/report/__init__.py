"""The audit as one self-contained HTML page that can be mailed, archived and opened anywhere."""

from __future__ import annotations

from pipelines.report.images import Preview
from pipelines.report.page import render_report

__all__ = ["Preview", "render_report"]
