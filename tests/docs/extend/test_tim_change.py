from tests.analysis.rows import analyse, only, sample, table


def test_a_failure_with_the_larger_change_is_found() -> None:
    rows = [sample(0, iou=0.9, tim_dclf_l2=[0.1, 0.4, 0, 0]), sample(1, iou=0.2, tim_dclf_l2=[0.3, 0.2, 0, 0])]
    detection = analyse(table(rows))["detection"]
    found = {"task": "seg", "split": "test", "signal": "tim_change"}
    assert only(detection, **found, level="D1")["auroc"] == 1
    assert only(detection, **found, level="D2")["auroc"] == 0
