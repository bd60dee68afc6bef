-- Charlson index (Charlson 1987; codes of Quan et al. 2005, Med Care 43:1130) of the admission's diagnoses: of each
-- group of conditions the most severe counts. With the age score of Charlson et al. 1994 (J Clin Epidemiol 47:1245): a
-- point for each decade from 50 on, while MIT-LCP/mimic-code begins it a year later (51, 61, ...).
WITH found AS (
    SELECT s.stay_id, c.condition, max(c.points) AS points
    FROM diagnoses_icd AS d
    JOIN sepsis_stays AS s USING (hadm_id)
    JOIN charlson_codes AS c
        ON d.icd_version = c.icd_version
        AND left(trim(d.icd_code), length(c.first_code)) BETWEEN c.first_code AND c.last_code
    GROUP BY ALL
),
comorbid AS (SELECT stay_id, sum(points) AS points FROM found GROUP BY stay_id)
SELECT
    stay_id,
    (coalesce(points, 0) + CASE
        WHEN age < 50 THEN 0 WHEN age < 60 THEN 1 WHEN age < 70 THEN 2 WHEN age < 80 THEN 3 ELSE 4
    END)::INTEGER AS charlson
FROM sepsis_stays
LEFT JOIN comorbid USING (stay_id)
