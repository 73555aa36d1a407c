"""The sagas at whose nodes a safeguard's predicted cases happen, by the names that cases are written with."""

REGION_START, FINISH = "region-replacement-start", "region-replacement-finish"
DRIVE = "region-replacement-drive"
START, STEP = "region-snapshot-replacement-start", "region-snapshot-replacement-step"
STEP_COLLECT = "region-snapshot-replacement-step-garbage-collect"
