-- Invasive ventilation as the nurses' procedure record has it: start and end are charted there, while rules over
-- ventilator settings and oxygen devices depend on free text that part of the records lacks.
SELECT DISTINCT
    p.stay_id,
    hours_between(s.intime, p.starttime) AS start_hours,
    hours_between(s.intime, p.endtime) AS end_hours,
    i.name AS kind
FROM procedureevents AS p
JOIN items AS i ON p.itemid = i.itemid AND i.source = 'procedureevents'
JOIN candidates AS s ON p.stay_id = s.stay_id
WHERE p.endtime > p.starttime AND p.statusdescription IS DISTINCT FROM 'Rewritten'
