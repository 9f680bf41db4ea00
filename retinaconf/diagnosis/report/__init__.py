"""The numbers of `diagnosis.measures` as words, JSON, figures and a page."""
