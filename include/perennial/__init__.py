"""Perennial: keeps machine-learning models alive in production, on Apache Airflow.

This package is the domain: plain Python that imports no Airflow, except below ``perennial.orchestration``.
"""
