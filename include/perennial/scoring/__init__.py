"""Batch scoring: selects the version, predicts an interval, and writes to the lake and to the predictions database.

Start with :mod:`perennial.scoring.publish`.
"""
