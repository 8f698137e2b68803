"""Training: the pinned training set, the fits, the evaluation, and making a version again.

Begin with :mod:`perennial.training.fit`.
"""
