-- One row for each meter and hour, from what was known six hours before it.
SELECT
    entities.meter,
    entities.hour,
    extract(hour FROM entities.hour) AS hour_of_day,
    entities.forecast,
    entities.meter AS which_meter,
    readings.load AS load_yesterday,
FROM entities
LEFT JOIN readings
    ON readings.meter = entities.meter
    AND readings.hour = entities.hour - INTERVAL 1 DAY
    AND readings._known_at <= entities.as_of
