-- Urine events in mL; irrigant that went in counts negative.
SELECT
    o.stay_id,
    hours_between(s.intime, o.charttime) AS hours,
    i.name AS feature,
    canonical(o.value, i.rule) AS value
FROM outputevents AS o
JOIN items AS i ON o.itemid = i.itemid AND i.source = 'outputevents'
JOIN candidates AS s ON o.stay_id = s.stay_id
WHERE o.value IS NOT NULL
    AND o.charttime BETWEEN s.intime - INTERVAL 24 HOUR AND s.outtime
