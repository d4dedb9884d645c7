"""The study's nine claims, decided by the numbers of a run, and the sentences for it.

    claims.verdict_table(claims.verdicts(artifacts.read_metrics("sample")))
    claims.tell("outline", guided)     # "Do the maps ...? Yes, +0.48 (+0.45 to +0.51)."
    claims.reading(gain > 0, "Flips help.", f"Here they do not: {gain:+.1f} points.")

C1 data, C2 network_choice, C3 accuracy, C4 bias, C5 outline, C6 resizing, C7 face, C8
transfer, C9 gan: each is a function from metrics to (measured, verdict). The study's
words and the questions are in claims.toml; intervals answer them. What lacks
photographs, first weights or a chapter is "not measured here": why, and the command.
"""

from __future__ import annotations

import functools
import math
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from fashionlib import artifacts
from fashionlib.catalogue import CLASS_NAMES
from fashionlib.evaluation import Estimate, escape, recalls, table


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


def side(interval: list[float] | None, reference: float = 0.0) -> str:
    """Where an interval [low, high] lies: above or below the reference, or undecided.

    Undecided is an interval that holds the reference, is missing or is not finite.
    Taught in: chapter 3
    """
    if interval is None or not all(map(math.isfinite, interval)):
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
    no finite interval is undecided, and its number is not told.
    Taught in: chapter 3
    """
    sentences = []
    for key, question in texts()[topic].items():
        found, say = _estimate(values, key), question["say"]
        answer = texts()["answer"][side(found.ci95, question["reference"])]
        if not all(map(math.isfinite, found.ci95)):
            say = say.partition("{answer}")[0] + "{answer}: there is no interval."
        sentences.append(say.format(answer=answer, found=found))
    return " ".join(sentences)


def known_networks(guided: dict) -> str:
    """Which methods tell two networks apart whose evidence is known.

    guided: the entry "guided_backprop" of metrics.json, after chapter 3b.
    Taught in: chapter 3b
    """
    methods = guided.get("methods", {})
    told = [name for name in methods if methods[name].get("tells_networks_apart")]
    names = ", ".join(told).replace("grad_cam", "Grad-CAM").replace("_", " ") or "none"
    names = names.replace("smoothgrad", "SmoothGrad")
    if not any("tells_networks_apart" in found for found in methods.values()):
        return texts()["not_measured"]["known_networks"]
    return f"{len(told)} of {len(methods)} methods tell the networks apart: {names}."


def face_sentence(guided: dict) -> str:
    """Whether the face holds more of the maps than the cloth, and whether it is needed.

    guided: the entry "guided_backprop" of metrics.json, after chapter 4.
    Taught in: chapter 4
    """
    if guided["face_reason"]:
        return texts()["not_measured"]["face"].format(reason=guided["face_reason"])
    values = guided | guided["face_density"]
    return f"{tell('face', values)} {tell('face_controls', values)}"


def _estimate(values: dict, key: str) -> Estimate:
    found, ci95 = values[key], values.get(f"{key}_ci95") or [math.nan, math.nan]
    return found if isinstance(found, Estimate) else Estimate(found, ci95)


def _decide(topic: str, values: dict) -> tuple[str, str]:
    """The answers to a topic's questions, and one word for all where they agree."""
    questions = texts()[topic].items()
    sides = {side(_estimate(values, key).ci95, q["reference"]) for key, q in questions}
    badge = texts()["badge"][sides.pop() if len(sides) == 1 else "several"]
    return tell(topic, values), texts()["scope"].get(topic, "{}").format(badge)


# --- the nine claims ------------------------------------------------------------------


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
    """C4: one test over the recalls of all classes, and how far the fractions shift.

    Taught in: chapter 6
    """
    network, text = metrics["classifier"], texts()["bias"]
    recall = recalls(network)
    worst, best = min(recall, key=recall.get), max(recall, key=recall.get)
    ends = f"{recall[worst]:.1%} for {worst} and {recall[best]:.1%} for {best}"
    verdict = text["unequal" if network["recall_equality_p"] < 0.05 else "undecided"]
    return text["measured"].format(ends=ends, **network), verdict.format(**network)


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
    if guided["face_reason"]:
        return "nothing", face_sentence(guided)
    return face_sentence(guided), _decide("face", guided | guided["face_density"])[1]


def transfer(metrics: dict) -> tuple[str, str]:
    """C8: first weights made for clothes, from the experiment "transfer".

    Taught in: chapter 6
    """
    kept, values = metrics["transfer"], {}
    for part, gain in kept["starts"]["catalogue"]["fine-tuning"].items():
        bounds = gain["gain_ci95"] + gain["gain_products_ci95"]  # over seeds, images
        values[part] = Estimate(gain["gain"], [min(bounds), max(bounds)]).in_percent()
    measured, verdict = _decide("transfer", values)
    if "imagenet" in kept["not_measured"]:
        verdict += f"; {texts()['not_measured']['imagenet']}"
    return measured, verdict


def gan(metrics: dict) -> tuple[str, str]:
    """C9: distances of generated from real images beside a baseline, and copies.

    Taught in: chapter 6
    """
    text, measured, copied, nearer = texts()["gan"], [], False, True
    for label, found in metrics["dcgan"].items():
        name = CLASS_NAMES[int(label)]
        if "reason" in found:  # too few images for a generator
            measured.append(f"{name}: {found['reason']}")
            continue
        measured.append(text["measured"].format(name=name, **found))
        copied |= found["nearest_neighbour_ratio"] <= 0.5
        nearer &= found["frechet_distance"] < found["baseline_frechet_distance"]
    verdict = [text["copies" if copied else "new"], text["nearer" if nearer else "far"]]
    return "; ".join(measured), "; ".join(verdict)


# --- all of them ----------------------------------------------------------------------

CLAIMS = (data, network_choice, accuracy, bias, outline, resizing, face, transfer, gan)


def verdicts(metrics: dict, kept: dict | None = None) -> list[Verdict]:
    """The nine verdicts; what has not run yet is "not measured here".

    kept: the experiments "resolution" and "transfer", else those in benchmarks/results.
    Taught in: chapter 6
    """
    kept = kept or {x: artifacts.measured(x) for x in ("resolution", "transfer")}
    synthetic, results = metrics.get("data", {}).get("synthetic"), []
    for (claim, study), decide in zip(texts()["study"].items(), CLAIMS, strict=True):
        try:
            measured, verdict = decide(metrics | kept)
        except KeyError as key:
            measured, verdict = "nothing", texts()["not_measured"]["entry"].format(key)
        if synthetic and decide in (bias, outline, face, gan):
            verdict += texts()["not_measured"]["photographs"]
        results.append(Verdict(claim, study, measured, verdict))
    return results


def verdict_table(verdicts: list[Verdict]) -> Any:
    """The verdicts as a table to display (pandas' Styler).

    Taught in: chapter 6
    """
    return table({row.claim: row._asdict() for row in verdicts}).hide(axis="index")
