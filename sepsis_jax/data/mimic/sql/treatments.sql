-- Infusions in canonical units (mcg/kg/min, units/min, mL); rows whose unit cannot be understood are left out and
-- counted by `facts.sql`.
WITH converted AS (
    SELECT
        stay_id, start_hours, end_hours, treatment, is_vasopressor,
        CASE
            WHEN NOT is_vasopressor THEN NULL
            -- 0.04 U/min is the usual dose, 2.4 U/h the same; above 0.2 "per minute" can only be per hour.
            WHEN treatment = 'vasopressin' AND rateuom = 'units/min' AND rate <= 0.2 THEN rate
            WHEN treatment = 'vasopressin' AND rateuom IN ('units/min', 'units/hour') THEN rate / 60
            WHEN treatment = 'vasopressin' THEN NULL
            WHEN rateuom = 'mcg/kg/min' THEN rate
            -- With a weight of 1 kg, the pump held mcg/kg/min under the wrong name (MIT-LCP/mimic-code).
            WHEN rateuom = 'mg/kg/min' AND patientweight = 1 THEN rate
            WHEN rateuom = 'mg/kg/min' THEN rate * 1000
            WHEN rateuom = 'mcg/min' AND patientweight > 1 THEN rate / patientweight
        END AS dose,
        CASE
            WHEN is_vasopressor THEN NULL
            WHEN amountuom = 'ml' THEN amount
            WHEN amountuom = 'l' THEN amount * 1000
            WHEN amountuom = 'ul' THEN amount / 1000
            WHEN amountuom = 'meq' AND treatment = 'bicarbonate_8_4pct' THEN amount -- 8.4 % holds 1 mEq/mL
            WHEN amountuom = 'grams' AND treatment = 'mannitol' THEN amount * 5 -- taken as mannitol 20 %
        END AS volume,
        rate IS NULL OR coalesce(end_hours <= start_hours, true) AS is_bolus
    FROM infusions
)
SELECT
    stay_id,
    start_hours,
    CASE WHEN is_vasopressor OR NOT is_bolus THEN end_hours END AS end_hours,
    treatment,
    dose AS rate,
    volume AS amount,
    CASE WHEN NOT is_vasopressor THEN 'mL' WHEN treatment = 'vasopressin' THEN 'units/min' ELSE 'mcg/kg/min' END AS unit
FROM converted
WHERE (dose > 0 AND end_hours > start_hours) OR volume > 0
