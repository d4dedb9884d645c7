"""The study's nine claims, decided by the numbers of a run, and the sentences for it.

    experiments = {"resolution": artifacts.measured("resolution")}
    claims.verdict_table(claims.verdicts(artifacts.read_metrics("sample"), experiments))
    claims.tell("outline", guided)     # "Do the maps ...? Yes, +0.48 (+0.45 to +0.51)."
    claims.reading(gain > 0, "Flips help.", f"Here they do not: {gain:+.1f} points.")

C1 data, C2 network_choice, C3 accuracy, C4 bias, C5 outline, C6 resizing, C7 face, C8
transfer, C9 gan: each is a function from metrics to (measured, verdict), of nothing but
their numbers. The study's words and the questions are in claims.toml; intervals answer
them. What lacks photographs, first weights or a chapter is "not measured here": why,
and the command. Null and what is not finite count as missing, and decide nothing.
"""

from __future__ import annotations

import functools
import math
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fashionlib import evaluation
from fashionlib.catalogue import CLASS_NAMES
from fashionlib.evaluation import Estimate, escape, table


@functools.cache
def texts() -> dict:
    """The words of claims.toml, read at the first use. Taught in: chapter 6"""
    return tomllib.loads(Path(__file__).with_name("claims.toml").read_text("utf-8"))


class Verdict(NamedTuple):
    """A claim, what the study says, what was measured (95 % intervals), what follows.

    As the last line of a cell it is shown as a list.
    Taught in: chapter 6
    """

    claim: str
    study: str
    measured: str
    verdict: str

    def _repr_markdown_(self) -> str:
        return texts()["shown"].format(*map(escape, self[1:]))


def is_interval(found: Any) -> bool:
    """Whether it is [low, high]: two finite numbers in this order.

    Taught in: chapter 3
    """
    bounds = np.array(found, float)  # None becomes NaN
    return bounds.shape == (2,) and -np.inf < bounds[0] <= bounds[1] < np.inf


def side(interval: list[float] | None, reference: float = 0.0) -> str:
    """Where an interval [low, high] lies: above or below the reference, or undecided.

    Undecided is an interval that holds the reference, and one that is none.
    Taught in: chapter 3
    """
    if not is_interval(interval):
        return "undecided"
    low, high = interval
    return "above" if low > reference else "below" if high < reference else "undecided"


def reading(condition: Any, sentence: str, otherwise: str) -> None:
    """Show the sentence where the condition holds in this run, else what is so instead.

    Both are Markdown; text of a catalogue goes through `evaluation.escape` first. The
    output's metadata say {"reading": condition}, so that a test finds what failed.
    Taught in: chapter 1
    """
    from IPython.display import Markdown, display

    holds = bool(condition)
    display(Markdown(sentence if holds else otherwise), metadata={"reading": holds})


# --- sentences ------------------------------------------------------------------------


def tell(topic: str, values: dict) -> str:
    """The questions of a topic, answered by their numbers and 95 % intervals.

    topic: a table of claims.toml (outline, sanity, faithful). values: Estimates, or
    numbers with their intervals under `<key>_ci95`, as metrics.json has them. What has
    no finite interval is undecided, its number is not told, but the reason if there is
    one under `<key>_reason`.
    Taught in: chapter 3
    """
    return _decide(topic, values)[0]


def known_networks(guided: dict) -> str:
    """Which methods tell two networks apart whose evidence is known.

    guided: the entry "guided_backprop" of metrics.json, after chapter 3b.
    Taught in: chapter 3b
    """
    text, methods = texts()["known_networks"], guided.get("methods") or {}
    found = {True: [], False: [], None: []}  # they do, they do not, not measured
    for name, values in methods.items():
        found[values.get("tells_networks_apart")].append(text["names"].get(name, name))
    if not found[True] + found[False]:
        return texts()["not_measured"]["known_networks"]
    told, undecided = (", ".join(found[key]) or "none" for key in (True, None))
    return text["say"].format(len(found[True]), len(methods), told, undecided)


def mark(metrics: dict, subject: str) -> str:
    """What of a kept run was measured with a defect that is mended; empty if nothing.

    metrics: its JSON; `superseded` lists keys, each with a reason and the subjects that
    it affects: claims, "sanity". A new run has no such list.
    Taught in: chapter 6
    """
    text, found = texts()["superseded"], metrics.get("superseded") or ()
    reasons = [each["reason"] for each in found if subject in each["affects"]]
    words = [text.get(reason, reason) for reason in dict.fromkeys(reasons)]
    return text["mark"].format("; ".join(words)) if words else ""


def answers(topic: str, values: dict) -> Iterator[tuple[str, str, str, str]]:
    """Of each question its words, the side of its interval, the answer, the sentence.

    topic, values: as in `tell`. The side is "missing" where there is no interval.
    Taught in: chapter 6
    """
    for key, question in texts()[topic].items():
        found, say = values.get(key), question["say"]
        asked = say.partition(" {answer}")[0]
        if not isinstance(found, Estimate):
            found = Estimate(found, values.get(f"{key}_ci95"))
        if is_interval(found.ci95) and is_interval([found.value] * 2):
            where = side(found.ci95, question["reference"])
        else:
            where, say = "missing", f"{asked} {{answer}}: {{found}}."
            found = values.get(f"{key}_reason") or "there is no interval"
        answer = question.get(where, texts()["answer"][where])
        yield asked, where, answer, say.format(answer=answer, found=found)


def _decide(topic: str, values: dict) -> tuple[str, str]:
    """The answers to a topic's questions, and one word for all where they agree."""
    _, sides, _, sentences = zip(*answers(topic, values), strict=True)
    where = sides[0] if len(set(sides)) == 1 else "several"
    badge = texts()["badge"]["missing" if "missing" in sides else where]
    return " ".join(sentences), texts()["scope"].get(topic, "{}").format(badge)


# --- the nine claims ------------------------------------------------------------------


def _known(values: Any) -> Any:
    """Without null and numbers that are not finite, which `verdicts` miss as a key."""
    if isinstance(values, dict):
        known = {key: _known(value) for key, value in values.items()}
        return {key: value for key, value in known.items() if value is not None}
    if isinstance(values, list):
        return None if None in map(_known, values) else values
    return None if isinstance(values, float) and not math.isfinite(values) else values


def data(metrics: dict) -> tuple[str, str]:
    """C1: the counts of the catalogue; the study's own contradict its split.

    Taught in: chapter 6
    """
    found, text = metrics["data"], texts()["counts"]
    verdict = text["kaggle" if found["rows"] == text["kaggle_rows"] else "another"]
    return text["measured"].format(**found), verdict


def network_choice(metrics: dict) -> tuple[str, str]:
    """C2: the least errors among the ResNets, by torchvision's own figures.

    Taught in: chapter 6
    """
    least = [metrics["classifier"][f"least_top{k}_error"] for k in (1, 5)]
    verdict = "holds" if least == ["resnet152"] * 2 else "does not hold"
    return f"least top-1 and top-5 error: {' and '.join(least)}", verdict


def accuracy(metrics: dict) -> tuple[str, str]:
    """C3: the test accuracy; ResNet152 from ImageNet's weights alone decides it.

    Taught in: chapter 6
    """
    network = metrics["classifier"]
    names = f"{network['architecture']}, first weights {network['weights']}"
    found = Estimate(network["accuracy"]["test"], network["test_accuracy_ci95"])
    verdict = texts()["against_study"][side(network["minus_study_ci95"])]
    if metrics["data"]["synthetic"]:
        verdict = texts()["not_measured"]["resnet152"]
    elif names != "resnet152, first weights imagenet":
        verdict = texts()["against_study"]["another"].format(verdict)
    return f"{found:.2%} by {names}", verdict


def bias(metrics: dict) -> tuple[str, str]:
    """C4: two questions of the confusion matrix: equal fractions, equal recalls.

    The study compared the fractions. Each question has one test over all classes.
    Taught in: chapter 6
    """
    confusion, text = metrics["classifier"]["confusion"], texts()["bias"]
    k, shift = evaluation.largest_shift(confusion)
    recalls = evaluation.recalls(metrics["classifier"])
    worst, best = min(recalls, key=recalls.get), max(recalls, key=recalls.get)
    shown = shift, CLASS_NAMES[k], recalls[worst], worst, recalls[best], best
    tests = evaluation.marginal_homogeneity, evaluation.recall_equality
    p_values = [test(confusion) for test in tests]
    unequal = [p < 0.05 for p in p_values]
    words = [text["answers"][answer] for answer in unequal]
    verdict = text["verdict"].format(text["badge"][sum(unequal)], *words, *p_values)
    return text["measured"].format(*shown), verdict


def outline(metrics: dict) -> tuple[str, str]:
    """C5: edges and silhouette, against another image and an untrained network.

    Taught in: chapter 6
    """
    return _decide("outline", metrics["guided_backprop"])


def resizing(metrics: dict) -> tuple[str, str]:
    """C6: one network at 64x64 and at 224x224, from the experiment "resolution".

    Taught in: chapter 6
    """
    variant = metrics["resolution"]["variants"]["64x64, imagenet stem"]
    gap, (low, high) = variant["against_224"]["class"]
    return _decide("resizing", {"lost": Estimate(-gap, [-high, -low]).in_percent()})


def face(metrics: dict) -> tuple[str, str]:
    """C7: saliency on the face, by area and in total, by training, and its blurring.

    Taught in: chapter 6
    """
    guided = metrics["guided_backprop"]
    if reason := guided["face_reason"]:
        return "nothing", texts()["not_measured"]["face"].format(reason=reason)
    values = guided | guided["face_density"]
    measured, verdict = _decide("face", values)
    return f"{measured} {tell('face_controls', values)}", verdict


def transfer(metrics: dict) -> tuple[str, str]:
    """C8: first weights made for clothes against ImageNet's, of "transfer".

    Against random ones where the kept experiment has no others.
    Taught in: chapter 6
    """
    starts, values = metrics["transfer"]["starts"], {}
    key = "minus_imagenet" if "imagenet" in starts else "gain"
    for part, found in starts["catalogue"]["fine-tuning"].items():
        bounds = found[f"{key}_ci95"] + found[f"{key}_products_ci95"]  # seeds, images
        values[part] = Estimate(found[key], [min(bounds), max(bounds)]).in_percent()
    return _decide(f"transfer_{key}", values)


def gan(metrics: dict) -> tuple[str, str]:
    """C9: new images, as near, varied and recognisable as real ones, in each class.

    One half is the line where a part is most of the whole.
    Taught in: chapter 6
    """
    text, measured, verdict = texts()["gan"], [], []
    for label, found in metrics["dcgan"].items():
        name = CLASS_NAMES[int(label)]
        if "reason" in found:  # too few images for a generator
            measured.append(f"{name}: {found['reason']}")
            continue
        measured.append(text["measured"].format(name=name, **found))
        passed = (
            found["nearest_neighbour_ratio"] > 0.5,
            found["frechet_distance"] < found["baseline_frechet_distance"],
            found["frechet_distance"] <= found["real_real_distance"],
            found["recall"] > 0.5,
            found["accepted_fraction"] > 0.5,
        )
        pairs = zip(text["checks"], passed, strict=True)
        fails = ", ".join(check for check, holds in pairs if not holds)
        verdict.append(f"{name}: {text['fails'] if fails else text['holds']}{fails}")
    return "; ".join(measured) or "nothing", "; ".join(verdict) or text["none"]


# --- all of them ----------------------------------------------------------------------

CLAIMS = (data, network_choice, accuracy, bias, outline, resizing, face, transfer, gan)


def verdicts(metrics: dict, experiments: dict | None = None) -> list[Verdict]:
    """The nine verdicts; what has not run yet is "not measured here".

    metrics: of a run. experiments: "resolution" and "transfer" of benchmarks/results,
    for C6 and C8.
    Taught in: chapter 6
    """
    text, results = texts()["not_measured"], []
    known = _known(metrics | (experiments or {}))
    for (claim, study), decide in zip(texts()["study"].items(), CLAIMS, strict=True):
        try:
            measured, verdict = decide(known)
            if decide in (bias, outline, face, gan) and known["data"]["synthetic"]:
                verdict += text["photographs"]
        except KeyError as key:
            measured, verdict = "nothing", text["entry"].format(key)
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            measured, verdict = "nothing", text["damaged"].format(error)
        results.append(Verdict(claim, study, measured + mark(metrics, claim), verdict))
    return results


def verdict_table(verdicts: list[Verdict]) -> Any:
    """The verdicts as a table to display (pandas' Styler).

    Taught in: chapter 6
    """
    return table({row.claim: row._asdict() for row in verdicts}).hide(axis="index")
