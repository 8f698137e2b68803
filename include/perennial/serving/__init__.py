"""Online scoring: a server that keeps the champions in memory and answers requests in milliseconds.

Begin with :mod:`perennial.serving.app`.
"""
