-- Every canonical value of the candidates. A blood gas that is labelled venous, mixed or central venous says nothing
-- about arterial pH, PaO2 and PaCO2; unlabelled samples are kept.
SELECT stay_id, hours, feature, value FROM chart_values WHERE feature <> 'weight_kg'
UNION ALL
SELECT stay_id, hours, feature, value FROM urine_values
UNION ALL
SELECT stay_id, hours, feature, value
FROM lab_values AS l
WHERE feature <> 'specimen'
    AND NOT (
        rule = 'arterial'
        AND EXISTS (
            SELECT 1 FROM lab_values AS t
            WHERE t.specimen_id = l.specimen_id AND t.stay_id = l.stay_id AND t.specimen_type <> 'ART.'
        )
    )
