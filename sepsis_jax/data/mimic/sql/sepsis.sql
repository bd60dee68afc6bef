-- Sepsis-3 (Singer et al. 2016, JAMA 315:801): SOFA of a rolling day reaches the limit around a suspicion of infection
-- (baseline taken as 0). The first suspicion that has such an hour counts, and the first such hour of it.
WITH rolling AS (
    SELECT
        stay_id,
        hour + 1 AS sofa_hours,
        max(respiratory) OVER day + max(coagulation) OVER day + max(liver) OVER day
        + max(cardiovascular) OVER day + max(nervous) OVER day + max(renal) OVER day AS sofa
    FROM sofa_points
    WINDOW day AS (PARTITION BY stay_id ORDER BY hour ROWS BETWEEN 23 PRECEDING AND CURRENT ROW)
)
SELECT DISTINCT ON (stay_id)
    stay_id,
    CASE getvariable('onset') WHEN 'sofa' THEN sofa_hours ELSE suspected_hours END::DOUBLE AS onset_hours
FROM rolling
JOIN suspicion USING (stay_id)
WHERE sofa >= getvariable('min_sofa')
    AND sofa_hours BETWEEN suspected_hours - getvariable('sofa_before_hours')
    AND suspected_hours + getvariable('sofa_after_hours')
ORDER BY stay_id, suspected_hours, sofa_hours
