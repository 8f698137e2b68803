"""Work on a whole deployment: backup, maintenance, the agreement of ledger and lake, set-up of a deployment, identities.

Begin with :mod:`perennial.operations.maintenance` or :mod:`perennial.operations.backup`.
"""
