"""Monitoring after scoring: performance, drift verdicts, versions in the champion's shadow, and the decision to retrain.

Begin with :mod:`perennial.monitoring.verdicts`, then :mod:`perennial.monitoring.retraining`.
"""
