"""The demo: the example's data, the replay of 2013 through the real stack, and the summary at its end.

Begin with :mod:`perennial.demo.replay`. Imports :mod:`perennial.stack` and what is below it.
"""
