"""What happens after scoring: performance, drift verdicts, the shadow of the champion before, and whether to retrain.

Begin with :mod:`perennial.monitoring.judge`; the decision to retrain is in :mod:`perennial.monitoring.retraining`.
"""
