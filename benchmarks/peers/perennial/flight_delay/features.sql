-- What can be known two hours before a flight's scheduled departure. Arrivals and entities are rows of `news`, placed at the
-- moment they are known or asked for, so that a window that ends at an entity sees what was known by then.
WITH
news AS (
  SELECT flight_id, as_of AS moment, carrier, flight, origin, dest, NULL::BIGINT AS delay
  FROM entities
  UNION ALL
  SELECT NULL, arrivals._known_at, carrier, flight, origin, dest, greatest(-30, least(120, arr_delay))
  FROM arrivals JOIN flights USING (flight_id)
),
delays AS (
  SELECT flight_id,
    avg(delay) OVER (PARTITION BY carrier, origin ORDER BY moment RANGE INTERVAL 7 DAY PRECEDING) AS carrier_delay_7d,
    avg(delay) OVER (PARTITION BY dest ORDER BY moment RANGE INTERVAL 1 DAY PRECEDING) AS destination_delay_1d,
    avg(delay) OVER (PARTITION BY dest ORDER BY moment RANGE INTERVAL 14 DAY PRECEDING) AS destination_delay_14d,
    avg(delay) OVER (PARTITION BY carrier, flight, origin ORDER BY moment RANGE INTERVAL 14 DAY PRECEDING) AS flight_delay_14d
  FROM news
  QUALIFY flight_id IS NOT NULL
),
observed AS (
  SELECT flight_id, wind_speed, wind_gust, precip, pressure, visib
  FROM entities ASOF JOIN weather ON weather.origin = entities.origin AND weather._known_at <= entities.as_of
  WHERE entities.as_of - weather._known_at <= INTERVAL 12 HOUR
)
SELECT flight_id, scheduled_minutes, weekday, distance, carrier, origin, dest,
  delays.* EXCLUDE (flight_id), observed.* EXCLUDE (flight_id),
  year(entities.scheduled_departure) - aircraft.year AS aircraft_age, seats
FROM entities
LEFT JOIN delays USING (flight_id)
LEFT JOIN observed USING (flight_id)
LEFT JOIN aircraft USING (tailnum)
