"""The stages: what a run of each does, step by step, whoever starts it.

The tasks of the DAGs call the steps one by one, and the command line calls all of them in order, so that a stage does the same
either way. A step takes a :class:`~perennial.stages.run.StageRun` and plain values, and gives back what the next one needs.
It knows neither Airflow nor a terminal; it may import everything else but these two, and imports it when it is called, since
the libraries of all take ten seconds.

Begin with :mod:`perennial.stages.train`, whose last function is the whole stage.
"""
