"""An audit by its stages: plan, estimate, score, select, publish. Plain functions; runs without Prefect."""
