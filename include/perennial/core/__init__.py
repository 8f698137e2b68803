"""What every package needs and none owns: errors, intervals, settings, logs, databases, SQL text.

Begin with :mod:`perennial.core.errors`, which draws every error on one tree. Imports no other package of Perennial.
"""
