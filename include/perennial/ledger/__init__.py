"""The ledger: one SQL database that decides what is published and which version is champion.

Each family of tables has its own module. :mod:`perennial.ledger.store` combines them.

Begin with :mod:`perennial.ledger.store`.
"""
