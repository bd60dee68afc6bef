-- Suspicion of infection (Seymour et al. 2016, JAMA 315:762): a culture and antibiotics close together. The earlier of
-- the two is the time of suspicion. A culture with a date only is compared in whole days.
WITH pairs AS (
    SELECT
        a.stay_id,
        a.antibiotic_time,
        coalesce(c.charttime, c.chart_date::TIMESTAMP) AS culture_time,
        CASE WHEN c.charttime IS NULL
            THEN date_diff('day', c.chart_date, a.antibiotic_time::DATE)
                BETWEEN 0 AND ceil(getvariable('culture_to_antibiotic_hours') / 24)
            ELSE a.antibiotic_time > c.charttime
                AND hours_between(c.charttime, a.antibiotic_time) <= getvariable('culture_to_antibiotic_hours')
        END AS culture_first,
        CASE WHEN c.charttime IS NULL
            THEN date_diff('day', a.antibiotic_time::DATE, c.chart_date)
                BETWEEN 0 AND ceil(getvariable('antibiotic_to_culture_hours') / 24)
            ELSE a.antibiotic_time < c.charttime
                AND hours_between(a.antibiotic_time, c.charttime) <= getvariable('antibiotic_to_culture_hours')
        END AS antibiotic_first
    FROM antibiotics AS a
    JOIN cultures AS c USING (subject_id)
),
suspected AS (
    SELECT
        stay_id,
        antibiotic_time,
        coalesce(min(culture_time) FILTER (WHERE culture_first), antibiotic_time) AS suspected_time
    FROM pairs
    WHERE culture_first OR antibiotic_first
    GROUP BY stay_id, antibiotic_time
)
SELECT DISTINCT stay_id, hours_between(intime, suspected_time) AS suspected_hours
FROM suspected
JOIN adults USING (stay_id)
