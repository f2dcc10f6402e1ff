"""What a person sees: terminal tables, figures, coloured transcripts, one self-contained HTML page."""
