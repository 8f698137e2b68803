"""The watchdog: a process beside Airflow that notices what no callback can, and shows figures to Prometheus.

Begin with :mod:`perennial.watchdog.rules`, which decides; :mod:`perennial.watchdog.process` looks and tells.
"""
