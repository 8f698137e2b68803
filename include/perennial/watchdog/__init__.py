"""The watchdog: a process beside Airflow that finds what no callback can report, and shows figures to Prometheus.

Begin with :mod:`perennial.watchdog.rules`, which decides what is wrong; :mod:`perennial.watchdog.process` reads and reports.
"""
