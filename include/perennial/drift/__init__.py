"""Whether data drifted: columns compared by Evidently and by our own checks, sampled, with calibrated thresholds.

Begin with :mod:`perennial.drift.compare`; what it finds is in :mod:`perennial.drift.findings`. Whether drift matters is
decided in :mod:`perennial.monitoring.verdicts`.
"""
