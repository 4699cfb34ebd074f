"""Evaluation of models: scored answers, likelihoods, suites, and two models on the same prompts."""

from posttrain.evaluation.answers import Asked
from posttrain.evaluation.evaluate import compare, evaluate
from posttrain.evaluation.result import Evaluation

__all__ = ["Asked", "Evaluation", "compare", "evaluate"]
