"""Training: pin the training set, fit candidates, evaluate them, and reproduce a version.

Begin with :mod:`perennial.training.fit`.
"""
