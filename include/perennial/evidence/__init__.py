"""What was measured and decided, as plain values. The ledger, MLflow, model cards and Airflow tasks hold the same values.

Begin with :mod:`perennial.evidence.plain`: it writes evidence as JSON, and reads evidence of older releases.
No module of this package measures, decides or reads a store.
"""
