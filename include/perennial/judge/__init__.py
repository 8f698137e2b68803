"""The judge: a service that alone may change which version is champion. It knows neither Airflow nor Celery.

Tasks propose; :mod:`perennial.judge.service` takes their proposals from the ledger, measures again, decides, and writes its
rulings. Begin with :mod:`perennial.judge.steps`.
"""
