-- One row per ICU stay with its demographics, its end and its outcomes (all stays, before any exclusion).
WITH stays AS (
    SELECT
        i.stay_id, i.subject_id, i.hadm_id, i.intime,
        coalesce(i.outtime, a.dischtime) AS outtime,
        p.anchor_age + year(i.intime) - p.anchor_year AS age,
        p.gender AS sex,
        -- '2011 - 2013': dates are shifted patient by patient, so that only this group orders the patients in time.
        try_cast(left(p.anchor_year_group, 4) AS INTEGER) AS period,
        a.deathtime,
        coalesce(p.dod, a.deathtime) AS dod,
        coalesce(a.hospital_expire_flag, 0) AS hospital_expire_flag,
        -- The last ICU stay of its admission: only there can the patient have died in the ICU.
        lead(i.intime) OVER (PARTITION BY i.hadm_id ORDER BY i.intime, i.stay_id) IS NULL AS is_last
    FROM icustays AS i
    JOIN patients AS p USING (subject_id)
    LEFT JOIN admissions AS a USING (hadm_id)
),
ends AS (
    SELECT
        *,
        -- Death is often recorded some hours before or after the bed is given up; without an hour, its date decides.
        is_last AND hospital_expire_flag = 1 AND coalesce(
            deathtime <= outtime + INTERVAL 6 HOUR, dod::DATE <= outtime::DATE, false
        ) AS died_in_icu
    FROM stays
)
SELECT
    stay_id, subject_id, hadm_id, intime, outtime, age, sex,
    hours_between(intime, CASE WHEN died_in_icu THEN least(deathtime, outtime) ELSE outtime END) AS exit_hours,
    CASE WHEN died_in_icu THEN 'death' ELSE 'discharge' END AS exit_kind,
    -- No date of death up to a year after the last discharge: the patient was alive on day 90.
    coalesce(date_diff('day', intime::DATE, dod::DATE) <= 90, false)::INTEGER AS mortality_90d,
    hospital_expire_flag AS mortality_hospital,
    period
FROM ends
