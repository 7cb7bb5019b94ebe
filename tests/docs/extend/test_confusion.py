from tests.analysis.rows import analyse, sample, table


def test_every_pair_is_counted() -> None:
    rows = [sample(0), sample(1), sample(2, y_true=1, y_pred=0), sample(3, y_pred=1, split="val")]
    found = analyse(table(rows))["confusion"].to_pylist()
    assert [(row["y_true"], row["y_pred"], row["n"]) for row in found] == [(0, 0, 2), (1, 0, 1)]
