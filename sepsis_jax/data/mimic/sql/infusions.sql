-- Vasopressors and fluids of the candidates as charted. A 'Rewritten' row was replaced by another one.
SELECT
    e.stay_id,
    hours_between(s.intime, e.starttime) AS start_hours,
    hours_between(s.intime, e.endtime) AS end_hours,
    i.name AS treatment,
    i.name IN (SELECT treatment FROM nee_factors) AS is_vasopressor,
    e.rate,
    lower(e.rateuom) AS rateuom,
    e.amount,
    lower(e.amountuom) AS amountuom,
    e.patientweight
FROM inputevents AS e
JOIN items AS i ON e.itemid = i.itemid AND i.source = 'inputevents'
JOIN candidates AS s ON e.stay_id = s.stay_id
WHERE e.statusdescription IS DISTINCT FROM 'Rewritten' AND e.starttime <= s.outtime
