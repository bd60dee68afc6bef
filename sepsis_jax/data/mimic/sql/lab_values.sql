-- Laboratory values by patient and time (hadm_id is often empty); `specimen_type` is set on the rows that name it.
SELECT
    s.stay_id,
    hours_between(s.intime, l.charttime) AS hours,
    i.name AS feature,
    i.rule,
    canonical(l.valuenum, i.rule) AS value,
    l.specimen_id,
    CASE WHEN i.name = 'specimen' THEN l.value END AS specimen_type
FROM labevents AS l
JOIN items AS i ON l.itemid = i.itemid AND i.source = 'labevents'
JOIN candidates AS s ON l.subject_id = s.subject_id
WHERE (l.valuenum IS NOT NULL OR i.name = 'specimen')
    AND l.charttime BETWEEN s.intime - INTERVAL 24 HOUR AND s.outtime
