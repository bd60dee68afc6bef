-- Values that SOFA may believe; the event tables keep all, and whoever reads them drops and counts the others.
SELECT stay_id, hours, feature, value
FROM measured
JOIN features USING (feature)
WHERE value BETWEEN CASE WHEN feature = 'output_4hourly' THEN -high ELSE low END AND high
