"""datamix: raw corpora in, a verified training set out, with mixture ratios that are exact and re-counted."""

__version__ = "0.1.0"
