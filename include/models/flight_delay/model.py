"""The estimator of ``flight_delay`` that YAML cannot say."""

from sklearn.ensemble import HistGradientBoostingClassifier


def boosting(**params: float) -> HistGradientBoostingClassifier:
    """Gradient boosted trees with few, well-filled leaves, each split looking at a third of the features.

    Args:
        params: of scikit-learn's HistGradientBoostingClassifier; they replace those given here.

    References:
        Friedman: Greedy Function Approximation: A Gradient Boosting Machine. Annals of Statistics 29 (2001).
    """
    # No early stopping: it would hold back rows at random, and neighbouring flights share a day's weather.
    settings = {"max_iter": 120, "max_leaf_nodes": 15, "min_samples_leaf": 200, "max_features": 0.3, "early_stopping": False}
    return HistGradientBoostingClassifier(**{**settings, **params})
