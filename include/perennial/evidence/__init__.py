"""What was measured and decided, as plain values: the ledger, MLflow, a card and a task of Airflow hold the same.

Begin with :mod:`perennial.evidence.plain`, which says how evidence becomes JSON and how that of an older release is read.
Nothing in here measures, decides or reads a store.
"""
