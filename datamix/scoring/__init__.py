"""A number for every record: likelihood under a model, difficulty of an instruction, likeness to a domain, a classifier's answer.

A scorer is a frozen value that names files and never holds them, so that it travels to any process; what it needs is loaded
once a process. ``parse_method`` reads ``--by``; ``write_scores`` and ``ScoreTable`` are the file between scoring and a build.
"""

from datamix.scoring.classifiers import Classifier, FastText
from datamix.scoring.importance import NgramImportance, fit_importance
from datamix.scoring.likelihood import EndpointLikelihood, Likelihood
from datamix.scoring.linear import LinearClassifier, fit_linear
from datamix.scoring.method import Method, parse_method
from datamix.scoring.ngrams import count_ngrams
from datamix.scoring.score_table import ScoredFile, ScoreTable, read_ids, read_scores, write_scores

Scorer = Likelihood | EndpointLikelihood | NgramImportance | LinearClassifier | FastText | Classifier

__all__ = [
    "Classifier", "EndpointLikelihood", "FastText", "Likelihood", "LinearClassifier", "Method", "NgramImportance", "ScoreTable",
    "ScoredFile", "Scorer", "count_ngrams", "fit_importance", "fit_linear", "parse_method", "read_ids", "read_scores",
    "write_scores",
]  # fmt: skip
