"""From a source to published tables: land, read each value as its type, check, quarantine, publish.

Begin with :mod:`perennial.ingestion.publish`, which calls the rest in order.
"""
