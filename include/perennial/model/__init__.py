"""A fitted model and its parts: candidates, labels, probabilities, costs, estimators, and the files it is stored in.

Begin with :mod:`perennial.model.candidate`, then :mod:`perennial.model.artifacts`.
"""
