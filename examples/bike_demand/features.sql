-- One row for each hour, from what was known when it began. Hours of the day and weekdays are those of Washington.
WITH past AS (
    SELECT
        entities.hour,
        -- In order: a sum of floats depends on it, and a feature must be the same to the last bit.
        avg(rentals.bikes ORDER BY rentals.hour) AS bikes_mean_7d
    FROM entities
    JOIN rentals
        ON rentals.hour >= entities.hour - INTERVAL 7 DAY AND rentals._known_at <= entities.as_of
    GROUP BY ALL
)
SELECT
    entities.hour,
    extract(hour FROM entities.hour AT TIME ZONE 'America/New_York') AS at_hour,
    isodow(entities.hour AT TIME ZONE 'America/New_York') AS weekday,
    month(entities.hour AT TIME ZONE 'America/New_York') AS month,
    entities.workingday,
    entities.temp,
    entities.humidity,
    entities.windspeed,
    newest.bikes AS bikes_last,
    day_before.bikes AS bikes_day_before,
    week_before.bikes AS bikes_week_before,
    past.bikes_mean_7d,
    entities.weather
FROM entities
ASOF LEFT JOIN rentals AS newest ON newest._known_at <= entities.as_of
LEFT JOIN rentals AS day_before
    ON day_before.hour = entities.hour - INTERVAL 1 DAY AND day_before._known_at <= entities.as_of
LEFT JOIN rentals AS week_before
    ON week_before.hour = entities.hour - INTERVAL 7 DAY AND week_before._known_at <= entities.as_of
LEFT JOIN past ON past.hour = entities.hour
