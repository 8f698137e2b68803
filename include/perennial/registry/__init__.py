"""The only package that uses MLflow: runs, versions, and the alias ``champion``, which follow the ledger.

Start with :mod:`perennial.registry.store`, the façade; :mod:`perennial.registry.champion` moves the alias.
"""
