"""The only package that knows MLflow: runs, versions, and the alias ``champion``, led by the ledger.

Begin with :mod:`perennial.registry.store`, the façade; :mod:`perennial.registry.champion` moves the alias.
"""
