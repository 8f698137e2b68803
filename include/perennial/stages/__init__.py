"""The stages: what a run of each stage does, step by step.

The tasks of the DAGs call the steps one by one. The command line calls all steps in order, so a stage does the same in both
cases. A step takes a :class:`~perennial.stages.run.StageRun` and plain values, and returns what the next step needs. Steps do
not use Airflow or a terminal, and never import their packages. A step imports other packages when it is called, since all
their libraries together take ten seconds to import.

Begin with :mod:`perennial.stages.train`. Its last function is the whole stage.
"""
