-- The worst value of each SOFA input in every hour [hour, hour + 1) of a candidate's stay; NULL where not measured.
WITH hours AS (
    SELECT stay_id, unnest(range(0, ceil(hours_between(intime, outtime))::BIGINT)) AS hour FROM candidates
),
charted AS (
    SELECT
        stay_id,
        floor(hours)::BIGINT AS hour,
        min(value) FILTER (WHERE feature = 'platelet') AS platelet,
        max(value) FILTER (WHERE feature = 'bilirubin_total') AS bilirubin_total,
        min(value) FILTER (WHERE feature = 'meanbp') AS meanbp,
        max(value) FILTER (WHERE feature = 'creatinine') AS creatinine,
        -- Exact sums, so that the answer does not depend on the order of the rows.
        sum(value::DECIMAL(18, 4)) FILTER (WHERE feature = 'output_4hourly') AS urine
    FROM plausible
    WHERE feature IN ('platelet', 'bilirubin_total', 'meanbp', 'creatinine', 'output_4hourly')
    GROUP BY ALL
),
coma AS (
    SELECT stay_id, floor(hours)::BIGINT AS hour, min(total) AS gcs
    FROM (
        SELECT
            stay_id,
            hours,
            min(value) FILTER (WHERE feature = 'gcs_eye') + min(value) FILTER (WHERE feature = 'gcs_verbal')
            + min(value) FILTER (WHERE feature = 'gcs_motor') AS total
        FROM plausible
        WHERE feature IN ('gcs_eye', 'gcs_verbal', 'gcs_motor')
        GROUP BY ALL
    )
    GROUP BY ALL
),
inspired AS (
    SELECT stay_id, hours, max(value) AS fio2 FROM plausible WHERE feature = 'fio2' GROUP BY ALL
),
oxygen AS (
    -- The inspired fraction is that of the sample, or the last one charted in the 4 h before it.
    SELECT
        a.stay_id,
        floor(a.hours)::BIGINT AS hour,
        min(100 * a.value / f.fio2) AS pf_ratio,
        bool_or(v.stay_id IS NOT NULL) AS ventilated
    FROM (SELECT * FROM plausible WHERE feature = 'pao2') AS a
    ASOF JOIN inspired AS f ON a.stay_id = f.stay_id AND a.hours >= f.hours
    LEFT JOIN ventilation AS v ON a.stay_id = v.stay_id AND a.hours BETWEEN v.start_hours AND v.end_hours
    WHERE a.hours - f.hours <= 4
    GROUP BY ALL
),
pressed AS (
    SELECT t.stay_id, t.treatment, h.hour, max(t.rate * n.factor) AS dose
    FROM hours AS h
    JOIN treatments AS t ON h.stay_id = t.stay_id AND t.start_hours < h.hour + 1 AND t.end_hours > h.hour
    JOIN nee_factors AS n ON t.treatment = n.treatment
    GROUP BY ALL
),
pressors AS (
    SELECT stay_id, hour, sum(dose::DECIMAL(18, 6)) AS norepinephrine_equivalent FROM pressed GROUP BY ALL
)
SELECT
    stay_id, hour, pf_ratio, coalesce(ventilated, false) AS ventilated, platelet, bilirubin_total, meanbp,
    norepinephrine_equivalent, gcs, creatinine,
    CASE WHEN hour >= 23 THEN
        sum(urine) OVER (PARTITION BY stay_id ORDER BY hour ROWS BETWEEN 23 PRECEDING AND CURRENT ROW)
    END AS urine_24h
FROM hours
LEFT JOIN charted USING (stay_id, hour)
LEFT JOIN coma USING (stay_id, hour)
LEFT JOIN oxygen USING (stay_id, hour)
LEFT JOIN pressors USING (stay_id, hour)
