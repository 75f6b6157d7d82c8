"""From a folder to an audit: masks and predictions, or tables, converted into what audits read."""
