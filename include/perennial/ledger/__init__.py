"""The ledger: one SQL database that decides what is published and who is champion.

Begin with :mod:`perennial.ledger.store`, the façade; each family of tables has a module beside it.
"""
