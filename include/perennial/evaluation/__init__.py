"""Is this version good enough: metrics, resampling, comparison, probes, and the gates that decide.

Begin with :mod:`perennial.evaluation.gates`, which decides from :mod:`perennial.evidence.evaluation` alone.
"""
