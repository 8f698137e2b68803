"""The lake: Iceberg tables, written per interval and read at the snapshots that the ledger names.

Begin with :mod:`perennial.lake.publish`. Three modules know PyIceberg: it,
:mod:`perennial.lake.catalog` and :mod:`perennial.lake.data_files`.
"""
