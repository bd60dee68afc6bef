-- Bedside values of the candidates, from 24 h before ICU admission until the end of the stay.
SELECT
    c.stay_id,
    hours_between(s.intime, c.charttime) AS hours,
    i.name AS feature,
    canonical(c.valuenum, i.rule) AS value
FROM chartevents AS c
JOIN items AS i ON c.itemid = i.itemid AND i.source = 'chartevents'
JOIN candidates AS s ON c.stay_id = s.stay_id
WHERE c.valuenum IS NOT NULL
    AND c.charttime BETWEEN s.intime - INTERVAL 24 HOUR AND s.outtime
