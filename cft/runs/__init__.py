"""Run folders: results, arms, lineage, cards."""
