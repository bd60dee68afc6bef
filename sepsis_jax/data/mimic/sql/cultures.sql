-- One row per specimen of a patient with antibiotics; charttime is NULL where only the date is known.
SELECT
    micro_specimen_id,
    max(subject_id) AS subject_id,
    max(chartdate)::DATE AS chart_date,
    max(charttime) AS charttime
FROM microbiologyevents
WHERE subject_id IN (SELECT subject_id FROM antibiotics)
GROUP BY micro_specimen_id
