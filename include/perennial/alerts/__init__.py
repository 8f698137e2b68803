"""Alerts: their words, the outbox in which they wait, and the channels that deliver them.

Begin with :mod:`perennial.alerts.alert`, then :mod:`perennial.alerts.outbox`. The words are in
:mod:`perennial.alerts.of_models` and :mod:`perennial.alerts.of_operation`. Imports only :mod:`perennial.core`.
"""
