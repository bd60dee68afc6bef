-- Systemic antibiotics that start within an ICU stay of an adult (as in MIT-LCP/mimic-code).
SELECT DISTINCT s.stay_id, s.subject_id, p.starttime AS antibiotic_time
FROM prescriptions AS p
JOIN adults AS s ON p.hadm_id = s.hadm_id AND p.starttime >= s.intime AND p.starttime < s.outtime
WHERE p.drug_type <> 'BASE'
    AND upper(p.route) NOT IN ('OU', 'OS', 'OD', 'AU', 'AS', 'AD', 'TP')
    AND NOT regexp_matches(lower(p.route), 'ear|eye')
    AND NOT regexp_matches(lower(p.drug), 'cream|desensitization|ophth oint|gel')
    AND regexp_matches(lower(p.drug), getvariable('antibiotics'))
