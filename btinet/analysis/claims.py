"""The paper's statements as checks of these runs.

A statement is one or more differences that should be positive. It *holds* if every difference is positive with a 95 %
interval that excludes 0, *does not hold* if some difference is negative with such an interval, and else *cannot be
told* with these runs. A statement that something makes no difference holds if its interval includes 0. Intervals are
those of :mod:`btinet.analysis.resampling`: paired, over seeds and samples.

Statements are checked on the datasets of which the paper makes them; those that are not bound to a dataset also on the
others that the runs have.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from btinet.analysis.estimates import Estimate, Estimates
from btinet.analysis.paper import PAPER_DATASETS, reference
from btinet.analysis.selections import CANDIDATES, PRIMARY
from btinet.analysis.summaries import Row
from btinet.evaluation.schema import LEVELS

HOLDS, FAILS, UNTOLD = "holds", "does not hold", "cannot be told"

ALL = tuple(PAPER_DATASETS)
TRANSFORMERS = ("transunet", "swin-unet", "missformer")
ENCODER_SHARING = ("mtan", "mtanet", "mtl-oca")
JOINT = ("mtan", "mtanet", "mtl-oca", "mti-net", "densemtl")


@dataclass(frozen=True)
class Part:
    """A difference that should be positive, or with ``none`` should not be there."""

    label: str
    estimate: Estimate | None
    missing: str = ""
    """Why there is no estimate."""
    none: bool = False
    digits: int = 2


@dataclass(frozen=True)
class Claim:
    text: str
    source: str
    """Where the paper says so."""
    parts: Callable[[Runs], list[Part]]
    stated: tuple[str, ...] = ALL
    """Of which datasets the paper says it."""
    general: bool = False
    """Whether it is worth checking on others."""
    remark: str = ""
    """What to know about the paper's own numbers."""


class Runs:
    """What the runs on one dataset, of one preset, say."""

    def __init__(self, dataset: str, preset: str, rows: dict[str, list[Row]], estimates: Estimates) -> None:
        self.dataset, self.preset, self._estimates = dataset, preset, estimates
        self._setting = {"dataset": dataset, "preset": preset, "method": "btinet", "variant": "full"}
        of = [row for row in rows["segmentation"] if (row["dataset"], row["preset"]) == (dataset, preset)]
        self.present = bool(of)
        self._class_populations = ("positives", "all") if dataset == "brisc2025" else ("all",)
        """In which the paper counts classifications, the first that there is: of BRISC images with a tumour."""
        self.others = [row["method"] for row in of if row["method"] != "btinet"]

    def quality(self, quantity: str, method: str = "btinet", variant: str = "full") -> Estimate | None:
        """``iou`` or ``accuracy`` of a method, in percent."""
        table = "classification" if quantity == "accuracy" else "segmentation"
        return self._estimates.get(self._setting, table, quantity, method=method, variant=variant)

    def detection(self, task: str, signal: str, level: str | None = None, metric: str = "auroc") -> Estimate | None:
        populations = self._class_populations if task == "clf" else (PRIMARY[task],)
        within = {"split": "test", "task": task, "signal": signal, "level": level}
        return self._first_of(populations, "detection", metric, within)

    def rho(self, x: str, y: str, level: str) -> Estimate | None:
        population = "all" if y in ("mc_mi", "mc_entropy", "conf") else "positives"
        within = {"x": x, "y": y, "level": level, "population": population}
        return self._estimates.get(self._setting, "correlations", "rho", within)

    def wrong_less_correct(self, level: str) -> Estimate | None:
        """Mean delta of wrongly less that of correctly classified samples."""
        return self._first_of(self._class_populations, "gate_wrong_correct", "difference", {"level": level})

    def _first_of(self, populations: Sequence[str], table: str, name: str, within: Row) -> Estimate | None:
        """The estimate of the first of these populations that there is."""
        found = (
            self._estimates.get(self._setting, table, name, within | {"population": population})
            for population in populations
        )
        return next((estimate for estimate in found if estimate is not None), None)

    def tim(self, direction: str, level: str, group: str = "easy_minus_hard") -> Estimate | None:
        within = {"direction": direction, "norm": "l1", "level": level, "group": group}
        return self._estimates.get(self._setting, "tim_magnitude", "magnitude", within)

    def best(self, task: str, signals: Sequence[str] | None = None, per_seed: bool = False) -> Any:
        """(signal, level) with the highest AUROC on test (an oracle), None where there is none; or one a seed."""
        found = {
            (signal, level): estimate
            for signal in signals or CANDIDATES[task]
            for level in LEVELS
            if (estimate := self.detection(task, signal, level)) is not None and estimate.seeds
        }
        if not per_seed:
            return max(found, key=lambda name: found[name].mean or 0) if found else None
        seeds = sorted({seed for estimate in found.values() for seed in estimate.seeds})
        return {
            seed: max(
                (name for name in found if seed in found[name].seeds), key=lambda name: found[name].by_seed[seed][0]
            )
            for seed in seeds
        }


def claims(rows: dict[str, list[Row]], estimates: Estimates) -> Iterator[Row]:
    """A row a statement and dataset; first the datasets that the runs have."""
    present = list(dict.fromkeys((row["dataset"], row["preset"]) for row in rows["segmentation"]))
    absent = [(dataset, "") for dataset in ALL if dataset not in {name for name, _ in present}]
    for dataset, preset in [*present, *absent]:
        runs = Runs(dataset, preset, rows, estimates)
        for claim in all_claims():
            stated = dataset in claim.stated
            if not stated and not (claim.general and dataset not in ALL):
                continue
            row = {"claim": claim.text, "source": claim.source, "dataset": dataset, "preset": preset or None}
            row |= {"stated": stated}
            if not runs.present:
                yield {**row, "verdict": UNTOLD, "numbers": None, "reason": f"no runs on {dataset}"}
            else:
                yield {**row, **_judge(claim, runs)}
    for dataset, preset in present:
        yield _same_best_of_all_seeds(Runs(dataset, preset, rows, estimates))


def _judge(claim: Claim, runs: Runs) -> Row:
    parts = claim.parts(runs)
    verdicts, numbers, reasons = [], [], []
    for part in parts:
        verdict, number, reason = _judge_part(part)
        verdicts.append(verdict)
        numbers.append(number)
        reasons.append(reason)
    verdict = FAILS if FAILS in verdicts else UNTOLD if UNTOLD in verdicts or not parts else HOLDS
    if verdict != UNTOLD:
        reasons = []
    remark = claim.remark if runs.dataset in claim.stated else ""
    shown = list(dict.fromkeys(reason for reason in [*reasons, remark] if reason))
    return {
        "verdict": verdict,
        "numbers": "; ".join(filter(None, numbers)) or None,
        "reason": "; ".join(shown) or (None if parts else "nothing to compare with"),
    }


def _judge_part(part: Part) -> tuple[str, str, str]:
    """(verdict, number with its interval, reason)."""
    if part.estimate is None:
        return UNTOLD, "", part.missing or "not among these runs"
    summary = part.estimate.summary()
    value, low, high = (summary[suffix] for suffix in ("", "_low", "_high"))
    if value is None:
        return UNTOLD, "", f"{part.label}: undefined"
    number = f"{part.label}: {value:+.{part.digits}f}"
    if low is None or high is None:
        return UNTOLD, number, f"{part.label}: no interval"
    number += f" [{low:+.{part.digits}f}, {high:+.{part.digits}f}]"
    includes_zero = low <= 0 <= high
    if part.none:
        return HOLDS if includes_zero else FAILS, number, ""
    if includes_zero:
        return UNTOLD, number, "an interval includes 0"
    return HOLDS if value > 0 else FAILS, number, ""


def _same_best_of_all_seeds(runs: Runs) -> Row:
    best = runs.best("seg", per_seed=True)
    row = {
        "claim": "The same signal and level finds failed segmentations best in all seeds",
        "source": "E.1",
        "dataset": runs.dataset,
        "preset": runs.preset,
        "stated": runs.dataset in ALL,
        "numbers": "; ".join(f"seed {seed}: {signal} {level}" for seed, (signal, level) in best.items()) or None,
        "reason": None,
    }
    if len(best) < 2:
        return {**row, "verdict": UNTOLD, "reason": "fewer than two seeds in which it is defined"}
    return {**row, "verdict": HOLDS if len(set(best.values())) == 1 else FAILS}


# The parts of statements


def _difference(label: str, a: Estimate | None, b: Estimate | None, digits: int = 2) -> Part:
    """a should exceed b."""
    if a is None or b is None:
        return Part(label, None)
    difference = a - b
    return Part(label, difference if difference.by_seed else None, f"{label}: no seed in common", digits=digits)


def _negated(estimate: Estimate | None) -> Estimate | None:
    return estimate and Estimate({seed: -values for seed, values in estimate.by_seed.items()})


def _exceeds(quantity: str, better: str, *worse: str) -> Callable[[Runs], list[Part]]:
    """The first method's IoU or accuracy is higher than the others'."""
    return lambda runs: [
        _difference(f"{better} − {other}, {quantity}", runs.quality(quantity, better), runs.quality(quantity, other))
        for other in worse
    ]


def _best_of_all(quantity: str) -> Callable[[Runs], list[Part]]:
    """BTI-Net's is higher than that of every other method that has it."""

    def parts(runs: Runs) -> list[Part]:
        found = {method: runs.quality(quantity, method) for method in dict.fromkeys(runs.others)}
        return [
            _difference(f"BTI-Net − {method}", runs.quality(quantity), estimate)
            for method, estimate in found.items()
            if estimate is not None and estimate.seeds
        ]

    return parts


def _variant(quantity: str, better: str, worse: str) -> Callable[[Runs], list[Part]]:
    return lambda runs: [
        _difference(
            f"{better} − {worse}, {quantity}",
            runs.quality(quantity, variant=better),
            runs.quality(quantity, variant=worse),
        )
    ]


def _best_variant(quantity: str) -> Callable[[Runs], list[Part]]:
    names = ("plain", "no-tim", "no-mscf-no-upa", "no-upa", "no-mscf")
    return lambda runs: [part for name in names for part in _variant(quantity, "full", name)(runs)]


def _upa_grows(runs: Runs) -> list[Part]:
    """What UPA adds in the whole network exceeds what it adds without MSCF."""
    whole, without, alone, neither = (
        runs.quality("iou", variant=name) for name in ("full", "no-upa", "no-mscf", "no-mscf-no-upa")
    )
    if whole is None or without is None or alone is None or neither is None:
        return [Part("(full − no-upa) − (no-mscf − no-mscf-no-upa), iou", None)]
    return [_difference("(full − no-upa) − (no-mscf − no-mscf-no-upa), iou", whole - without, alone - neither)]


def _over_mc(task: str, signal: str, *levels: str | None, metric: str = "auroc") -> Callable[[Runs], list[Part]]:
    name = metric.upper()
    return lambda runs: [
        _difference(
            f"{signal} {level or ''} − MC, {name}".replace("  ", " "),
            runs.detection(task, signal, level, metric),
            runs.detection(task, "mc", None, metric),
            3,
        )
        for level in levels
    ]


def _under_mc(task: str, signal: str, *levels: str | None, metric: str = "auroc") -> Callable[[Runs], list[Part]]:
    return lambda runs: [
        _difference(
            f"MC − {signal} {level or ''}, {metric.upper()}".replace(" ,", ","),
            runs.detection(task, "mc", None, metric),
            runs.detection(task, signal, level, metric),
            3,
        )
        for level in levels
    ]


def _best_signal_over(
    task: str, reference_signal: str, *metrics: str, reverse: bool = False
) -> Callable[[Runs], list[Part]]:
    """The signal and level that are best on test (an oracle) against a score without a level."""

    def parts(runs: Runs) -> list[Part]:
        best = runs.best(task)
        label = {"mc": "MC", "one_minus_conf": "1−conf"}[reference_signal]
        if best is None:
            return [Part(f"best UPA signal − {label}", None, "no UPA signal is defined on these runs")]
        result = []
        for metric in metrics:
            ours, other = (
                runs.detection(task, best[0], best[1], metric),
                runs.detection(task, reference_signal, None, metric),
            )
            names = [f"{best[0]} {best[1]}", label]
            if reverse:
                ours, other, names = other, ours, names[::-1]
            result.append(_difference(f"{names[0]} − {names[1]}, {metric.upper()}", ours, other, 3))
        return result

    return parts


def _rho(x: str, y: str, *levels: str, sign: int = 1) -> Callable[[Runs], list[Part]]:
    def parts(runs: Runs) -> list[Part]:
        found = {level: runs.rho(x, y, level) for level in levels}
        return [
            Part(
                f"{'−' if sign < 0 else ''}rho({x}, {y}) {level}",
                estimate if sign > 0 else _negated(estimate),
                digits=3,
            )
            for level, estimate in found.items()
        ]

    return parts


def _gate(*levels: str, none: bool = False) -> Callable[[Runs], list[Part]]:
    """Wrongly classified samples have a lower delta than correctly classified ones; or as high a one."""
    return lambda runs: [
        Part(f"delta, correct − wrong, {level}", _negated(runs.wrong_less_correct(level)), none=none, digits=3)
        for level in levels
    ]


def _easy_more(direction: str, *levels: str, sign: int = 1) -> Callable[[Runs], list[Part]]:
    """TIM changes easy samples more than hard ones; less with sign -1."""
    label = "easy − hard" if sign > 0 else "hard − easy"
    return lambda runs: [
        Part(f"{label}, {level}", found if sign > 0 else _negated(found), digits=4)
        for level in levels
        for found in [runs.tim(direction, level)]
    ]


def _peak(direction: str, peak: str, group: str = "easy") -> Callable[[Runs], list[Part]]:
    return lambda runs: [
        _difference(
            f"{group}, {peak} − {level}", runs.tim(direction, peak, group), runs.tim(direction, level, group), 4
        )
        for level in LEVELS
        if level != peak
    ]


def _grows(direction: str, *levels: str) -> Callable[[Runs], list[Part]]:
    """Easy and hard samples' change grows from each of the levels to the next."""
    return lambda runs: [
        _difference(f"{group}, {b} − {a}", runs.tim(direction, b, group), runs.tim(direction, a, group), 4)
        for group in ("easy", "hard")
        for a, b in itertools.pairwise(levels)
    ]


def _mc_below_chance(runs: Runs) -> list[Part]:
    mc = runs.detection("clf", "mc")
    below = mc and Estimate({seed: 0.5 - values for seed, values in mc.by_seed.items()})
    return [Part("0.5 − MC, AUROC", below, digits=3)]


def _best_delta_with_iou(runs: Runs) -> list[Part]:
    best = runs.best("seg", ["neg_delta"])
    if best is None:
        return [Part("rho(delta, iou)", None, "-delta finds no failures on these runs")]
    return _rho("delta", "iou", best[1])(runs)


def _text_deltas() -> Iterator[Claim]:
    """Section 4.3's margins, of which the sign is checked."""
    names = {"vs_MISSFormer": "missformer", "vs_MTI-Net": "mti-net", "vs_DenseMTL": "densemtl"}
    keys = {key: dataset for dataset, key in PAPER_DATASETS.items()}
    for name, method in names.items():
        for key, margin in reference()["text_claims_deltas"][name].items():
            quantity = "accuracy" if key.endswith("_acc") else "iou"
            dataset = keys[key.removesuffix("_acc")]
            what = "accuracy" if quantity == "accuracy" else "IoU"
            yield Claim(
                f"BTI-Net exceeds {name.removeprefix('vs_')} in {what}; the paper has {margin:+.2f}",
                "4.3",
                _exceeds(quantity, "btinet", method),
                (dataset,),
            )


@functools.cache
def all_claims() -> tuple[Claim, ...]:
    """In the paper's order."""
    ablation = reference()["text_claims_deltas"]["ablation"]
    return (
        Claim("BTI-Net has the highest IoU of all methods", "Tables 5, 6", _best_of_all("iou"), general=True),
        Claim(
            "BTI-Net has the highest accuracy of all joint methods", "Table 5", _best_of_all("accuracy"), general=True
        ),
        *_text_deltas(),
        Claim(
            "Encoder-sharing methods segment worse than single-task transformers",
            "4.3",
            lambda runs: [part for method in TRANSFORMERS for part in _exceeds("iou", method, *ENCODER_SHARING)(runs)],
            ("busi", "brisc2025"),
            remark="false by the paper's own Tables 5 and 6",
        ),
        Claim("MTAN segments better than MISSFormer", "4.3", _exceeds("iou", "mtan", "missformer"), ("ham10000",)),
        Claim(
            "MTAN's accuracy is the lowest of the joint methods",
            "4.3",
            lambda runs: [part for other in JOINT[1:] for part in _exceeds("accuracy", other, "mtan")(runs)],
            ("ham10000",),
        ),
        Claim("MTANet segments better than MTAN", "4.3", _exceeds("iou", "mtanet", "mtan"), ("busi",)),
        Claim("MTANet segments worse than MTAN", "4.3", _exceeds("iou", "mtan", "mtanet"), ("ham10000",)),
        Claim(
            "MTI-Net and DenseMTL segment better than single-task transformers",
            "4.3",
            lambda runs: [
                part for method in ("mti-net", "densemtl") for part in _exceeds("iou", method, *TRANSFORMERS)(runs)
            ],
            remark="false by the paper's own Tables 5 and 6 on BRISC",
        ),
        Claim("DenseMTL segments worse than MTI-Net", "4.3", _exceeds("iou", "mti-net", "densemtl"), ("busi",)),
        Claim(
            "DenseMTL segments better than MTI-Net",
            "4.3",
            _exceeds("iou", "densemtl", "mti-net"),
            ("ham10000", "brisc2025"),
        ),
        *(
            Claim(
                f"{what} IoU; the paper has {ablation[key]:+.2f}",
                "Table 4",
                _variant("iou", *pair),
                ("busi",),
                general=True,
            )
            for what, key, pair in (
                ("MSCF alone raises", "mscf", ("no-tim", "plain")),
                ("TIM alone raises", "tim", ("no-mscf-no-upa", "plain")),
                ("MSCF and TIM together raise", "mscf_tim", ("no-upa", "plain")),
                ("UPA without MSCF raises", "upa_isolated", ("no-mscf", "no-mscf-no-upa")),
                ("UPA in the whole network raises", "upa_in_context", ("full", "no-upa")),
                ("All parts together raise", "full", ("full", "plain")),
            )
        ),
        Claim(
            "The full network has the highest IoU of Table 4", "Table 4", _best_variant("iou"), ("busi",), general=True
        ),
        Claim(
            "The full network has the highest accuracy of Table 4",
            "Table 4",
            _best_variant("accuracy"),
            ("busi",),
            general=True,
        ),
        Claim("UPA adds more IoU with MSCF than without", "4.2", _upa_grows, ("busi",), general=True),
        Claim(
            "TIM with UPA classifies better than MSCF with TIM, and segments worse",
            "4.2",
            lambda runs: [
                *_variant("accuracy", "no-mscf", "no-upa")(runs),
                *_variant("iou", "no-upa", "no-mscf")(runs),
            ],
            ("busi",),
            general=True,
        ),
        Claim(
            "Without the gate's loss IoU falls; the paper has -0.53",
            "4.2",
            _variant("iou", "full", "no-gate-loss"),
            ("busi",),
            general=True,
        ),
        Claim(
            "A softmax gate segments worse than independent sigmoid gates",
            "4.2",
            _variant("iou", "full", "softmax-gate"),
            ("busi",),
            general=True,
            remark="the paper gives no number",
        ),
        *(
            Claim(
                f"w_seg finds failed segmentations better than Monte Carlo dropout (AUROC) at {', '.join(levels)}",
                "Table 2",
                _over_mc("seg", "w_seg", *levels),
                (dataset,),
            )
            for dataset, levels in (
                ("busi", ("D1", "D2", "D4")),
                ("brisc2025", ("D3",)),
                ("ham10000", LEVELS),
            )
        ),
        Claim(
            "w_seg's AUPRC for failed segmentations is below Monte Carlo dropout's at every level",
            "4.2",
            _under_mc("seg", "w_seg", *LEVELS, metric="auprc"),
            ("ham10000",),
        ),
        Claim(
            "The best UPA signal finds failed segmentations at least as well as Monte Carlo dropout (AUROC)",
            "5, Table A2",
            _best_signal_over("seg", "mc", "auroc"),
            general=True,
            remark="the signal is chosen on the test set",
        ),
        Claim(
            "-delta, levels weighted by AUROC, finds failed segmentations better than Monte Carlo dropout (AUROC)",
            "Table A2",
            _over_mc("seg", "neg_delta_weighted_oracle", None),
            general=True,
            remark="the weights are chosen on the test set",
        ),
        Claim(
            "The mean of -delta over the levels finds failed segmentations worse than Monte Carlo dropout (AUROC)",
            "Fig. A10",
            _under_mc("seg", "neg_delta_mean", None),
            ("brisc2025",),
        ),
        Claim(
            "The best UPA signal finds wrong classes better than Monte Carlo dropout (AUPRC)",
            "Table 3",
            _best_signal_over("clf", "mc", "auprc"),
            general=True,
            remark="the signal is chosen on the test set",
        ),
        Claim(
            "The best UPA signal finds wrong classes better than 1 - confidence (AUROC and AUPRC)",
            "Table 3",
            _best_signal_over("clf", "one_minus_conf", "auroc", "auprc"),
            ("busi",),
            remark="the signal is chosen on the test set",
        ),
        Claim(
            "1 - confidence finds wrong classes better than the best UPA signal (AUROC and AUPRC)",
            "Table 3",
            _best_signal_over("clf", "one_minus_conf", "auroc", "auprc", reverse=True),
            ("brisc2025", "ham10000"),
        ),
        Claim(
            "Monte Carlo dropout's entropy finds wrong classes worse than chance",
            "4.2",
            _mc_below_chance,
            ("brisc2025",),
        ),
        Claim(
            "delta is lower where the segmentation is worse, at -delta's best level",
            "E.1, Figs. A2, A8, A15",
            _best_delta_with_iou,
            general=True,
        ),
        Claim(
            "w_seg is higher where IoU is higher, at every level",
            "E.5",
            _rho("w_seg", "iou", *LEVELS),
            general=True,
            remark="contradicts Table 2, where a high w_seg means failure",
        ),
        Claim("delta falls with confidence at D4", "Fig. A2", _rho("delta", "conf", "D4", sign=-1), ("busi",)),
        Claim("delta rises with confidence at D1", "Fig. A8", _rho("delta", "conf", "D1"), ("brisc2025",)),
        Claim("delta falls with confidence at D1", "Fig. A15", _rho("delta", "conf", "D1", sign=-1), ("ham10000",)),
        Claim(
            "seg_energy falls with Monte Carlo dropout's variance at every level",
            "Table A6",
            _rho("seg_energy", "mc_seg", *LEVELS, sign=-1),
            ("busi",),
        ),
        Claim(
            "delta of wrongly and of correctly classified samples does not differ at D1 and D4",
            "E.2",
            _gate("D1", "D4", none=True),
            ("busi",),
        ),
        Claim(
            "delta is lower for wrongly classified samples at D1 and D4", "Table A10", _gate("D1", "D4"), ("brisc2025",)
        ),
        Claim("delta is lower for wrongly classified samples at D4", "Table A15", _gate("D4"), ("ham10000",)),
        Claim(
            "delta of wrongly and of correctly classified samples does not differ at D1",
            "Table A15",
            _gate("D1", none=True),
            ("ham10000",),
        ),
        Claim(
            "TIM changes the classification vector of easy samples more, at every level",
            "Fig. 2",
            _easy_more("seg_to_clf", *LEVELS),
            ("busi",),
            general=True,
        ),
        Claim("TIM's change of the classification vector peaks at D2", "Fig. 2", _peak("seg_to_clf", "D2"), ("busi",)),
        Claim(
            "TIM changes the decoder's map more at each finer level",
            "Fig. 2",
            _grows("clf_to_seg", *LEVELS),
            ("busi",),
            general=True,
        ),
        Claim(
            "TIM changes the decoder's map of easy samples more, at every level",
            "Fig. 2",
            _easy_more("clf_to_seg", *LEVELS),
            ("busi",),
            general=True,
        ),
        Claim(
            "The gap between easy and hard in the decoder's map is widest at D4",
            "Fig. 2",
            _peak("clf_to_seg", "D4", "easy_minus_hard"),
            ("busi",),
        ),
        Claim(
            "TIM changes the classification vector of hard samples more at D1 and D2",
            "Fig. A11",
            _easy_more("seg_to_clf", "D1", "D2", sign=-1),
            ("brisc2025",),
        ),
        Claim(
            "TIM's change of the decoder's map grows from D2 to D4",
            "Fig. A11",
            _grows("clf_to_seg", "D2", "D3", "D4"),
            ("brisc2025",),
        ),
        Claim(
            "TIM changes the classification vector of hard samples less, at every level",
            "Fig. A18",
            _easy_more("seg_to_clf", *LEVELS),
            ("ham10000",),
            remark='the paper calls this "unlike BUSI", of which Fig. 2 says the same',
        ),
        Claim(
            "TIM changes the decoder's map of easy samples more, at every level",
            "Fig. A18",
            _easy_more("clf_to_seg", *LEVELS),
            ("ham10000",),
        ),
    )
