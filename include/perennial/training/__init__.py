"""Training: pin the training set, fit candidates, evaluate them, and make a version again.

Begin with :mod:`perennial.training.fit`.
"""
