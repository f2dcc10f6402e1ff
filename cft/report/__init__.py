"""Reports: terminal tables, figures, colored transcripts, one self-contained HTML page."""
