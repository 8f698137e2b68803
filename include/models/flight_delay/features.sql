-- What can be known two hours before a flight's scheduled departure.
--
-- Everything that happens becomes a row of `news`, placed at the moment it is known; an entity is a row too, placed at its
-- as_of. A window that ends at the entity's own row then sees what was known by then and nothing else. All sums are of
-- integers, so they do not depend on the order of the rows, and every window ends well within the lookback of 17 days:
-- a day's features are the same whether it is computed alone or in a year.

WITH
flown AS (
  SELECT flights.*, dep_delay, departed.known AS departed_at, arr_delay, arrived.known AS arrived_at,
    epoch(scheduled_departure)::BIGINT // 60 AS scheduled_minute
  FROM flights
  LEFT JOIN (SELECT flight_id, dep_delay, _known_at AS known FROM departures) AS departed USING (flight_id)
  LEFT JOIN (SELECT flight_id, arr_delay, _known_at AS known FROM arrivals) AS arrived USING (flight_id)
),

-- Flights that should have left and have not been seen to: from ten minutes after schedule until they leave, or until
-- eight hours are over, when they count as cancelled. The end is not known beforehand, but a sum up to a moment before
-- the end does not hold it.
late AS (
  SELECT *, scheduled_departure + INTERVAL 10 MINUTE AS waits_from,
    least(departed_at, scheduled_departure + INTERVAL 8 HOUR) AS waits_until
  FROM flown
  WHERE (departed_at IS NULL OR departed_at > scheduled_departure + INTERVAL 10 MINUTE)
    AND scheduled_departure + INTERVAL 8 HOUR >= (SELECT min(as_of) FROM entities)
),

-- Delays are in minutes, cut off where longer ones tell no more. `waiting` and `since` sum up to the number of waiting
-- flights and to their scheduled minutes. News too old for the windows below, and arrivals of airlines and at destinations that
-- nobody asks for, are left out, which changes nothing but the time that a single day or flight takes.
news AS (
  SELECT flight_id, as_of AS moment, carrier, flight, origin, dest,
    NULL::BIGINT AS departure, NULL::BIGINT AS arrival, 0 AS waiting, 0 AS since
  FROM entities
  UNION ALL
  SELECT NULL, departed_at, carrier, flight, origin, dest, greatest(-15, least(180, dep_delay)), NULL, NULL, NULL
  FROM flown WHERE departed_at >= (SELECT min(as_of) FROM entities) - INTERVAL 6 HOUR
  UNION ALL
  SELECT NULL, arrived_at, carrier, flight, origin, dest, NULL, greatest(-30, least(120, arr_delay)), NULL, NULL
  FROM flown WHERE arrived_at >= (SELECT min(as_of) FROM entities) - INTERVAL 14 DAY
    AND (dest IN (SELECT dest FROM entities) OR (carrier, origin) IN (SELECT (carrier, origin) FROM entities))
  UNION ALL
  SELECT NULL, waits_from, carrier, flight, origin, dest, NULL, NULL, 1, scheduled_minute FROM late
  UNION ALL
  SELECT NULL, waits_until, carrier, flight, origin, dest, NULL, NULL, -1, -scheduled_minute FROM late
),

delays AS (
  SELECT flight_id,
    avg(departure) OVER airport_hour AS airport_delay_1h,
    sum(waiting) OVER airport AS airport_waiting,
    avg(departure) OVER carrier_hours AS carrier_delay_4h,
    avg(arrival) OVER carrier_week AS carrier_delay_7d,
    sum(waiting) OVER carrier_here * minute - sum(since) OVER carrier_here AS carrier_waited,
    avg(departure) OVER destination_hours AS destination_delay_6h,
    avg(arrival) OVER destination_day AS destination_delay_1d,
    avg(arrival) OVER destination_weeks AS destination_delay_14d,
    sum(waiting) OVER destination * minute - sum(since) OVER destination AS destination_waited,
    avg(arrival) OVER flight_weeks AS flight_delay_14d,
    avg((arrival > 15)::INTEGER) OVER flight_weeks AS flight_late_14d
  FROM (SELECT *, epoch(moment)::BIGINT // 60 AS minute FROM news)
  WINDOW
    airport AS (PARTITION BY origin ORDER BY moment),
    airport_hour AS (PARTITION BY origin ORDER BY moment RANGE INTERVAL 1 HOUR PRECEDING),
    carrier_here AS (PARTITION BY carrier, origin ORDER BY moment),
    carrier_hours AS (PARTITION BY carrier, origin ORDER BY moment RANGE INTERVAL 4 HOUR PRECEDING),
    carrier_week AS (PARTITION BY carrier, origin ORDER BY moment RANGE INTERVAL 7 DAY PRECEDING),
    destination AS (PARTITION BY dest ORDER BY moment),
    destination_hours AS (PARTITION BY dest ORDER BY moment RANGE INTERVAL 6 HOUR PRECEDING),
    destination_day AS (PARTITION BY dest ORDER BY moment RANGE INTERVAL 1 DAY PRECEDING),
    destination_weeks AS (PARTITION BY dest ORDER BY moment RANGE INTERVAL 14 DAY PRECEDING),
    flight_weeks AS (PARTITION BY carrier, flight, origin ORDER BY moment RANGE INTERVAL 14 DAY PRECEDING)
  QUALIFY flight_id IS NOT NULL
),

-- The newest observation known at the airport, unless the station has been silent for half a day.
observed AS (
  SELECT flight_id, weather.*
  FROM entities ASOF JOIN weather ON weather.origin = entities.origin AND weather._known_at <= entities.as_of
  WHERE entities.as_of - weather._known_at < INTERVAL 12 HOUR
),

-- The flight before, on the day before at most, for which the same aircraft left New York.
legs AS (
  SELECT flight_id, scheduled_departure,
    lag(scheduled_departure) OVER aircraft AS before, lag(departed_at) OVER aircraft AS departed_at,
    lag(dep_delay) OVER aircraft AS dep_delay, lag(distance) OVER aircraft AS distance
  FROM flown
  WHERE tailnum IN (SELECT tailnum FROM entities)
  WINDOW aircraft AS (PARTITION BY tailnum ORDER BY scheduled_departure, flight_id)
),
previous AS (
  SELECT * FROM legs WHERE scheduled_departure - before < INTERVAL 1 DAY
)

SELECT
  entities.flight_id,
  entities.scheduled_minutes,
  entities.weekday,
  entities.distance,
  entities.carrier,
  entities.origin,
  entities.dest,
  delays.* EXCLUDE (flight_id),
  -- Not seen to leave yet: by how much its schedule has passed, negative if it has not.
  CASE WHEN previous.departed_at <= as_of THEN previous.dep_delay ELSE date_diff('minute', before, as_of) END
    AS previous_delay,
  date_diff('minute', before, entities.scheduled_departure) AS previous_gap,
  previous.distance AS previous_distance,
  year(entities.scheduled_departure) - aircraft.year AS aircraft_age,
  aircraft.seats,
  observed.wind_dir AS wind_direction,
  observed.wind_speed,
  observed.wind_gust,
  observed.precip AS precipitation,
  observed.visib AS visibility,
  observed.pressure,
  observed.dewp AS dew_point,
  observed.humid AS humidity
FROM entities
LEFT JOIN delays USING (flight_id)
LEFT JOIN observed USING (flight_id)
LEFT JOIN previous USING (flight_id)
LEFT JOIN aircraft USING (tailnum)
