"""Every planted fault is found once, a sound dataset has none, and nothing hangs on order or memory."""

from __future__ import annotations

import io
import re
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from rich.console import Console

from btinet.datasets import audit as module
from btinet.datasets.audit import Audit, audit, findings_table, previews, samples_table, summary, write
from btinet.datasets.busi import BusiReader
from btinet.datasets.sample import Check, Finding, Pixels, Sample, SampleError
from btinet.storage import Storage

HEIGHT, WIDTH = 96, 120


def picture(seed: int) -> np.ndarray:
    """Blobs: unlike those of any other seed, and still alike after small changes."""
    coarse = np.random.default_rng(seed).integers(0, 200, (24, 30), dtype=np.uint8)
    return np.kron(coarse, np.ones((4, 4), np.uint8))


def box(left: int = 30) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[20:60, left : left + 40] = 255
    return mask


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def make_tree(root: Path, count: int = 20, reverse: bool = False) -> Path:
    """A sound BUSI of ``count`` images a class."""
    numbers = range(1, count + 1)
    for number in reversed(numbers) if reverse else numbers:
        for offset, name in enumerate(("benign", "malignant", "normal")):
            save(root / name / f"{name} ({number}).png", picture(1000 * offset + number))
            save(root / name / f"{name} ({number})_mask.png", box(number) if name != "normal" else 0 * box())
    return root


def audit_tree(root: Path, policy: str = "paper") -> Audit:
    return audit("busi", BusiReader(Storage(str(root))), policy, 42)


def plant_faults(root: Path) -> set[tuple[str, str, str, tuple[str, ...]]]:
    """Spoil a tree; what must be found: (check, severity, end of where, samples)."""
    benign, malignant, normal = root / "benign", root / "malignant", root / "normal"

    def name(number: int, end: str = "") -> str:
        return f"benign ({number}){end}.png"

    whole = (benign / name(1)).read_bytes()
    (benign / name(1)).write_bytes(whole[: len(whole) // 2])
    (benign / name(2)).write_bytes(b"")
    save(benign / name(3, "_mask"), box()[:-1])
    save(benign / name(4, "_mask"), np.tile(np.arange(WIDTH, dtype=np.uint8) * 2, (HEIGHT, 1)))
    save(benign / name(5, "_mask"), 0 * box())
    save(benign / name(6, "_mask"), 0 * box() + 255)
    (benign / name(7, "_mask")).unlink()
    save(normal / "normal (1)_mask.png", box())
    (malignant / "malignant (20).png").unlink()
    (malignant / "notes.png").write_bytes(whole)
    (benign / name(9)).write_bytes((benign / name(8)).read_bytes())
    (malignant / "malignant (1).png").write_bytes((benign / name(10)).read_bytes())
    stream = io.BytesIO()
    Image.fromarray((picture(1002) * 1.2 + 10).astype(np.uint8)).save(stream, "JPEG", quality=60)
    save(malignant / "malignant (3).png", np.asarray(Image.open(stream)))
    return {
        ("unreadable", "error", "/benign (1).png", ("benign (1)",)),
        ("unreadable", "error", "/benign (2).png", ("benign (2)",)),
        ("size-mismatch", "error", "/benign (3)_mask.png", ("benign (3)",)),
        ("non-binary-mask", "error", "/benign (4)_mask.png", ("benign (4)",)),
        ("empty-mask", "error", "/benign (5).png", ("benign (5)",)),
        ("full-mask", "warning", "/benign (6).png", ("benign (6)",)),
        ("missing-file", "error", "/benign (7).png", ("benign (7)",)),
        ("unexpected-mask", "error", "/normal (1).png", ("normal (1)",)),
        ("missing-file", "error", "/malignant (20)_mask.png", ()),
        ("layout", "error", "/notes.png", ()),
        ("exact-duplicate", "warning", "/benign (8).png", ("benign (8)", "benign (9)")),
        ("duplicate-across-classes", "warning", "/benign (10).png", ("benign (10)", "malignant (1)")),
        ("near-duplicate", "warning", "/malignant (2).png", ("malignant (2)", "malignant (3)")),
    }


def test_exactly_the_planted_faults_are_found(tmp_path: Path) -> None:
    expected = plant_faults(make_tree(tmp_path))
    result = audit_tree(tmp_path)
    found = [(str(f.check), f.severity, f.where[f.where.rindex("/") :], f.samples) for f in result.findings]
    split_of = dict(zip(result.facts["sample_id"].to_pylist(), result.splits, strict=True))
    expected |= {
        ("duplicate-across-splits", severity, where, samples)
        for check, severity, where, samples in expected
        if "duplicate" in check and split_of[samples[0]] != split_of[samples[1]]
    }
    assert sorted(found) == sorted(expected)
    assert result.has_errors
    assert result.note == ""
    assert [row["listed"] - row["usable"] for row in result.classes.to_pylist()] == [5, 0, 0]
    assert sum(sum(row[split] for split in ("train", "val", "test")) for row in result.classes.to_pylist()) == 54


def test_findings_are_ordered(tmp_path: Path) -> None:
    plant_faults(make_tree(tmp_path))
    reader = BusiReader(Storage(str(tmp_path)))
    findings = audit("busi", reader, "paper", 42).findings
    again = audit("busi", reader, "paper", 42).findings
    assert [(f.check, f.where) for f in again] == [(f.check, f.where) for f in findings]
    keys = [(f.severity, list(Check).index(f.check), f.where) for f in findings]
    assert keys == sorted(keys)
    table = findings_table(findings)
    assert table.column_names == ["check", "severity", "where", "message", "samples"]
    assert table["samples"].to_pylist() == [list(f.samples) for f in findings]


def test_a_sound_dataset_has_no_findings(tmp_path: Path) -> None:
    make_tree(tmp_path)
    result = audit_tree(tmp_path)
    assert (result.findings, len(result.pairs), result.note) == ([], 0, "")
    assert not result.has_errors
    assert result.classes.to_pylist() == [
        {"class": name, "listed": 20, "usable": 20, "marked": marked, "train": 14, "val": 3, "test": 3}
        for name, marked in (("benign", 20), ("malignant", 20), ("normal", 0))
    ]


def test_a_missing_class_is_found(tmp_path: Path) -> None:
    make_tree(tmp_path)
    (tmp_path / "normal").rename(tmp_path / "elsewhere")
    result = audit_tree(tmp_path)
    assert [(f.check, f.severity, f.where) for f in result.findings] == [("class-size", "error", "class normal")]
    assert result.note == ""
    assert set(result.splits) == {"train", "val", "test"}


def test_too_few_samples_to_split(tmp_path: Path) -> None:
    make_tree(tmp_path, count=2)
    result = audit_tree(tmp_path)
    assert [f.check for f in result.findings] == [Check.CLASS_SIZE] * 3
    assert "policy 'paper' cannot split these samples, so none were looked at: too few" in result.note
    assert set(result.splits) == {None}


def test_nothing_usable_at_all(tmp_path: Path) -> None:
    make_tree(tmp_path / "data", count=2)
    for file in (tmp_path / "data").rglob("*.png"):
        file.write_bytes(b"")
    result = audit_tree(tmp_path / "data")
    assert [f.check for f in result.findings] == [Check.UNREADABLE] * 6 + [Check.CLASS_SIZE] * 3
    write(result, BusiReader(Storage(str(tmp_path / "data"))), Storage(str(tmp_path / "out")))
    assert len((Storage(str(tmp_path / "out")) / "samples.parquet").read_table()) == 0


def test_the_order_on_disk_does_not_matter(tmp_path: Path) -> None:
    written = []
    for reverse in (False, True):
        root, out = tmp_path / "data", Storage(str(tmp_path / f"out-{reverse}"))
        plant_faults(make_tree(root, reverse=reverse))
        write(audit_tree(root), BusiReader(Storage(str(root))), out)
        written.append({file.name: file.sha256() for file in out.children()})
        root.rename(tmp_path / f"done-{reverse}")
    assert written[0] == written[1]
    names = ["audit", "classes", "duplicates", "findings", "previews", "samples"]
    assert list(written[0]) == [f"{name}.parquet" for name in names]


class MadeReader:
    """Sample i shows picture ``shows(i)``; counts the images that are still held by anyone."""

    classes = ("a", "b")
    healthy = frozenset[str]()
    origin = "memory"

    def __init__(
        self, count: int, shows: Callable[[int], int] = lambda i: i, groups: str = "", splits: tuple[str, ...] = ()
    ) -> None:
        self._samples = [
            Sample(f"s{i:03d}", i % 2, groups[i] if groups else None, f"{i}", (), splits[i] if splits else None)  # type: ignore[arg-type]
            for i in range(count)
        ]
        self.shows = shows
        self.alive: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()
        self.loads = self.most_alive = 0

    def samples(self) -> list[Sample]:
        return self._samples

    def findings(self) -> list[Finding]:
        return []

    def load(self, sample: Sample) -> Pixels:
        image = np.repeat(picture(self.shows(int(sample.sample_id[1:])))[:, :, None], 3, axis=2)
        self.loads += 1
        self.alive[self.loads] = image
        self.most_alive = max(self.most_alive, len(self.alive))
        return Pixels(image, box() // 255)


def test_duplicates_and_groups_across_the_authors_splits() -> None:
    """s000 and s002 show the same, s003 and s005 too; groups x and y have two samples in two splits."""
    reader = MadeReader(
        8,
        shows=lambda i: {2: 0, 5: 3}.get(i, i),
        groups="abxcdxyy",
        splits=("train", "train", "test", "val", "test", "val", "test", "train"),
    )
    result = audit("made", reader, "manifest", 0)
    assert {(f.check, f.where, f.samples) for f in result.findings} == {
        (Check.EXACT_DUPLICATE, "0", ("s000", "s002")),
        (Check.EXACT_DUPLICATE, "3", ("s003", "s005")),
        (Check.DUPLICATE_ACROSS_SPLITS, "0", ("s000", "s002")),
        (Check.GROUP_ACROSS_SPLITS, "group x", ("s002", "s005")),
        (Check.GROUP_ACROSS_SPLITS, "group y", ("s006", "s007")),
        (Check.CLASS_SIZE, "class a", ()),
        (Check.CLASS_SIZE, "class b", ()),
    }
    assert "the authors' own splits were looked at: split policy 'manifest': 2 group(s)" in result.note
    samples = samples_table(result)
    assert samples["cluster"].to_pylist() == [0, None, 0, 2, None, 2, None, None]
    assert samples["assigned_split"].to_pylist() == samples["split"].to_pylist()
    assert samples["class"].to_pylist() == ["a", "b"] * 4
    assert "fingerprint" not in samples.column_names


def test_clean_splits_leave_no_duplicate_across_splits() -> None:
    reader = MadeReader(80, shows=lambda i: i % 70)
    checks = {policy: {f.check for f in audit("made", reader, policy, 1).findings} for policy in ("paper", "clean")}
    assert checks == {
        "paper": {Check.EXACT_DUPLICATE, Check.DUPLICATE_ACROSS_SPLITS},
        "clean": {Check.EXACT_DUPLICATE},
    }


def test_progress_and_memory() -> None:
    """Images are let go: few are alive at any time, none at the end."""
    reader = MadeReader(200)
    steps: list[tuple[int, int]] = []
    audit("made", reader, "paper", 42, lambda *step: steps.append(step))
    assert steps == [(done, 200) for done in range(1, 201)]
    assert reader.loads == 200
    assert reader.most_alive <= 2 * 8
    assert not reader.alive


# previews


def decode(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)))


def test_previews_show_the_mask_on_a_small_image() -> None:
    reader = MadeReader(20, shows=lambda i: 700 if i < 2 else i)
    result = audit("made", reader, "paper", 42)
    loads = reader.loads
    table = previews(result, reader)
    assert reader.loads == loads + 2  # each is decoded once more, though two findings may show it
    assert table.schema.equals(module.PREVIEWS)
    rows = [row for row in table.to_pylist() if row["finding"] == 0]
    assert [(row["sample_id"], row["class"], row["source"]) for row in rows] == [("s000", "a", "0"), ("s001", "b", "1")]
    image = decode(rows[0]["jpeg"]).astype(int)
    assert image.shape == (HEIGHT, WIDTH, 3)  # small already
    is_line = np.abs(image - module.OUTLINE).sum(2) < 120
    drawn = np.argwhere(is_line)
    assert drawn.min(0).tolist() == [20, 30]
    assert drawn.max(0).tolist() == [59, 69]
    assert is_line.sum() >= 0.9 * 2 * (40 + 38)


def test_previews_are_small() -> None:
    image = np.zeros((300, 480, 3), np.uint8)
    assert decode(module._preview(Pixels(image, image[:100, :160, 0]))).shape == (100, 160, 3)
    assert decode(module._preview(Pixels(image.transpose(1, 0, 2), image[:1, :1, 0]))).shape == (160, 100, 3)


def test_previews_are_bounded_and_the_worst_come_first() -> None:
    """40 clusters of two, one of nine within a class, one of two across classes."""

    def shows(i: int) -> int:
        if i < 160:
            return i // 4 * 2 + i % 2
        return 900 if i in (160, 161) else 901 if i % 2 else i

    result = audit("made", MadeReader(180, shows), "paper", 42)
    table = previews(result, MadeReader(180, shows))
    shown = table.to_pylist()
    by_check: dict[str, list[list[str]]] = {}
    for number in dict.fromkeys(row["finding"] for row in shown):
        members = [row["sample_id"] for row in shown if row["finding"] == number]
        by_check.setdefault(result.findings[number].check, []).append(members)
    assert by_check["duplicate-across-classes"] == [["s160", "s161"]]
    assert max(len(members) for members in by_check["exact-duplicate"]) == module.CLUSTER_MEMBERS
    for cases in by_check.values():
        assert sum(map(len, cases)) <= module.PREVIEWS_PER_CHECK
        assert all(len(members) > 1 for members in cases)
    crosses = [
        len({row["split"] for row in shown if row["finding"] == number}) > 1
        for number in dict.fromkeys(row["finding"] for row in shown)
        if result.findings[number].check == Check.EXACT_DUPLICATE
    ]
    assert crosses == sorted(crosses, reverse=True)


def test_what_cannot_be_decoded_has_no_preview(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = MadeReader(20, shows=lambda i: 0 if i < 4 else i)
    load = reader.load

    def failing(sample: Sample) -> Pixels:
        if sample.sample_id == "s001":
            raise SampleError(Check.UNREADABLE, sample.sample_id, "broken: mend it")
        return load(sample)

    monkeypatch.setattr(reader, "load", failing)
    result = audit("made", reader, "paper", 42)
    assert result.findings[0] == Finding(Check.UNREADABLE, "error", "s001", "broken: mend it", ("s001",))
    assert set(previews(result, reader)["sample_id"].to_pylist()) == {"s000", "s002", "s003"}


def test_two_alike_that_cross_are_shown_together() -> None:
    """A chain s0-s1-...-s9, of which the link s7-s8 alone crosses classes."""
    members = [{"sample_id": f"s{i}", "class": "a" if i < 8 else "b", "split": "train"} for i in range(10)]
    similarity = {frozenset((f"s{i}", f"s{i + 1}")): 0.9 for i in range(9)}
    shown = [member["sample_id"] for member in module._most_telling(members, similarity)]  # type: ignore[arg-type]
    assert shown[:2] == ["s7", "s8"]
    for position, sample_id in enumerate(shown[1:], start=1):
        assert any(frozenset((sample_id, other)) in similarity for other in shown[:position])


# the terminal


def shown(result: Audit) -> str:
    stream = io.StringIO()
    Console(file=stream, width=160, color_system=None).print(summary(result))
    return stream.getvalue()


def test_summary_lists_errors_one_by_one(tmp_path: Path) -> None:
    plant_faults(make_tree(tmp_path))
    result = audit_tree(tmp_path)
    text = re.sub(r"\s+", "", shown(result))
    for finding in result.findings:
        if finding.severity == "error":
            assert re.sub(r"\s+", "", str(finding)) in text
    assert "unreadableerror2" in text


def test_summary_is_bounded() -> None:
    result = audit("made", MadeReader(20), "paper", 42)
    errors = [Finding(Check.UNREADABLE, "error", f"file[{i}].png", "broken: mend it") for i in range(60)]
    warnings = [Finding(Check.NEAR_DUPLICATE, "warning", f"near{i}", "alike") for i in range(60)]
    more = [Finding(Check.EMPTY_MASK, "error", "late.png", "empty")]
    text = shown(result._replace(findings=[*errors, *more, *warnings]))
    assert text.count("broken: mend it") == module.MAX_LISTED_ERRORS
    assert "file[0].png" in text  # not taken for markup
    assert "and 10 more: findings.parquet" in text
    assert "and 1 more: findings.parquet" in text
    assert "and 57 more: findings.parquet" in text
    assert "nothing found" in shown(result)


def test_findings_table_of_nothing() -> None:
    assert findings_table([]).equals(pa.table([[]] * 5, module.FINDINGS))
