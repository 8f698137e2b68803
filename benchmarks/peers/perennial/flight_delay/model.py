"""The estimator of this model."""

from sklearn.ensemble import HistGradientBoostingClassifier


def boosting(**params: float) -> HistGradientBoostingClassifier:
    settings = {"max_iter": 120, "max_leaf_nodes": 15, "min_samples_leaf": 200, "max_features": 0.3, "early_stopping": False}
    return HistGradientBoostingClassifier(**settings, **params)
