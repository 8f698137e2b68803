"""Files of history as unlike as people bring them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd


def hourly(file: Path, days: int = 40) -> Path:
    """Rented bikes by the hour: a day in the American way, the hour beside it, and a running number."""
    hours = pd.date_range("2011-01-01", periods=24 * days, freq="h")
    random = np.random.default_rng(1)
    count = 100 + 80 * np.sin(hours.hour / 24 * 6.28) + random.normal(0, 10, len(hours))
    pd.DataFrame(
        {
            "instant": range(1, len(hours) + 1),
            "dteday": [f"{hour.month}/{hour.day}/{hour.year}" for hour in hours],
            "hr": hours.hour,
            "holiday": (hours.dayofyear % 20 == 0).astype(int),
            "temp": random.uniform(0, 1, len(hours)).round(2),
            "cnt": count.round().astype(int),
        }
    ).to_csv(file, index=False)
    return file


def half_hourly(file: Path, days: int = 30) -> Path:
    """Electricity of two regions, as a European spreadsheet exports it."""
    times = pd.date_range("2023-05-01", periods=48 * days, freq="30min")
    random = np.random.default_rng(2)
    lines = ["Region;Zeitpunkt;Last (MW);Preis;Prognose-Güte"]
    for region in ("Süd", "Nord"):
        for at in times:
            load = f"{random.uniform(1000, 2500):,.1f}".translate(str.maketrans(",.", ".,"))
            price = "-9999" if random.random() < 0.02 else f"{random.uniform(20, 80):.2f}".replace(".", ",")
            quality = "n/a" if random.random() < 0.05 else f"{random.uniform(0, 1):.3f}".replace(".", ",")
            lines.append(";".join([region, f"{at:%d.%m.%Y %H:%M}", load, price, quality]))
    file.write_text("\n".join(lines), encoding="latin-1")
    return file


def events(file: Path, days: int = 60, a_day: int = 30) -> Path:
    """Customers who leave or stay: another one in each row, with leading zeros, and texts for what is missing."""
    random = np.random.default_rng(3)
    rows = days * a_day
    visits = random.integers(0, 40, rows)
    frame = pd.DataFrame(
        {
            "customerID": [f"{number:07d}" for number in range(rows)],
            "signedUpAt": [
                f"{day:%Y-%m-%dT%H:%M:%S}+00:00"
                for day in pd.date_range("2024-01-01", periods=rows, freq=f"{1440 // a_day}min")
            ],
            "plan": random.choice(["free", "pro", "team"], rows),
            "visits": visits,
            "spend": [("NA" if random.random() < 0.1 else f"{value:.2f}") for value in random.uniform(0, 90, rows)],
            "country": "DE",
            "churn": np.where(random.random(rows) < 1 / (1 + np.exp((visits - 20) / 5)), "yes", "no"),
        }
    )
    frame.to_csv(file, index=False, compression="gzip" if file.suffix == ".gz" else None)
    return file
