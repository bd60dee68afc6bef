-- The table `stays`: the weight is the first one known at the bedside or at a pump.
WITH weights AS (
    SELECT DISTINCT ON (stay_id) stay_id, weight_kg
    FROM (
        SELECT stay_id, hours, value AS weight_kg FROM chart_values WHERE feature = 'weight_kg'
        UNION ALL
        SELECT stay_id, start_hours AS hours, patientweight AS weight_kg FROM infusions
    )
    WHERE weight_kg BETWEEN getvariable('weight_kg')[1] AND getvariable('weight_kg')[2]
    ORDER BY stay_id, hours, weight_kg
)
SELECT
    stay_id, subject_id, age, sex, weight_kg, charlson, exit_hours, exit_kind, mortality_90d, mortality_hospital,
    onset_hours, period
FROM sepsis_stays
JOIN sepsis USING (stay_id)
JOIN charlson USING (stay_id)
LEFT JOIN weights USING (stay_id)
ORDER BY stay_id
