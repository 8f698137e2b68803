"""The lake: Iceberg tables, written per interval and read at the snapshots that the ledger names.

Begin with :mod:`perennial.lake.publish`. :mod:`perennial.lake.catalog` alone knows PyIceberg.
"""
