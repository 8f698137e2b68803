"""Batch scoring: which version scores an interval, its predictions, the lake and the predictions database.

Begin with :mod:`perennial.scoring.publish`.
"""
