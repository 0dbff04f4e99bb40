"""Words for readers: what a claim's test measures, how, and what came out; formulas as HTML."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from resnet_limits.claims import VERDICTS, Verdict
from resnet_limits.stats import CONFIDENCE
from resnet_limits.study_files import Claim

INTERVALS = {
    "binomial_slope": "Student's",
    "equivalence": "The wider of Welch's and Student's",
    "mean": "Student's",
    "paired_difference": "Student's",
    "proportion": "Clopper and Pearson's",
    "slope": "Student's",
    "trend": "Bonett and Wright's",
}
IN_DEVIATIONS = "The wider of Fieller's and the noncentral t distribution's"
EXTREMES = {"max": "largest ", "min": "smallest ", "only": ""}
GREEK = {
    "alpha": "α", "beta": "β", "epsilon": "ε", "eta": "η", "kappa": "κ", "lambda": "λ",
    "Lambda": "Λ", "mu": "μ", "nu": "ν", "rho": "ρ", "sigma": "σ", "tau": "τ", "theta": "θ",
}  # fmt: skip


def typeset(text: str, words: Mapping[str, str] | None = None) -> Markup:
    """Return plain text as HTML.

    Formulas such as ``r^(-1/2)``, ``T_{k+1}`` and ``alpha <= 1e-3`` get exponents, indices, signs
    and Greek letters. Names such as ``n_train`` are replaced by ``words``, plain text or `Markup`,
    or else lose their underscores.
    """
    html = str(escape(text))
    for pattern, replacement in FORMULAS:
        html = re.sub(pattern, replacement, html)
    known = words or {}
    names = r"\b[A-Za-z]\w*_\w+\b"
    return Markup(re.sub(names, lambda name: str(escape(in_words(name[0], known))), html))


def in_words(name: object, words: Mapping[str, str]) -> str:
    """Return what the name of a column or a value means."""
    return words.get(str(name), str(name).replace("_", " "))


def quantity(claim: Claim, words: Mapping[str, str]) -> str:
    """Name the quantity that a claim's test estimates.

    Parameters
    ----------
    claim
        An entry of claims.yaml.
    words
        What columns and values mean, as study.yaml has it for the claim's table.
    """
    told = _arguments(claim, words)
    match claim.test:
        case "slope":
            logs = claim.arguments.get("log", "both")
            x, y = (("log " if logs in ("both", key) else "") + told[key] for key in "xy")
            return f"slope of {y} over {x}"
        case "binomial_slope":
            return f"slope of log share of {told['failures']} over log {told['x']}"
        case "trend":
            return f"rank correlation of {told['y']} with {told['x']}"
        case "proportion":
            return f"share of {told['holds']}"
        case "value":
            return EXTREMES[claim.arguments.get("reduce", "only")] + told["column"]
        case "equivalence":
            return f"{told['value']}, ours minus the authors'"
        case "paired_difference":
            unit = ", in standard deviations" if "in_standard_deviations" in told else ""
            return f"difference of {told['value']}{unit}"
    return f"mean {told['value']}"


def method(claim: Claim, words: Mapping[str, str]) -> str:
    """Say in sentences how a claim is tested; parameters as for `quantity`."""
    measured = _capitalized("".join([quantity(claim, words), *_details(claim, words)]))
    if claim.exact:
        return f"{measured}. It is exact and has no interval."
    kind = INTERVALS[claim.test]
    if "in_standard_deviations" in claim.arguments:
        kind = IN_DEVIATIONS
    limits = "one-sided limits" if claim.bound.one_sided else "limits"
    return f"{measured}. {kind} {CONFIDENCE * 100:g} % {limits} must lie within the bound."


def outcome(verdicts: Sequence[Verdict], whose: str, kind: str) -> str:
    """Count verdicts in a sentence: ``Of the paper's 3 claims, 2 are reproduced and 1 is ...``.

    Parameters
    ----------
    verdicts
        Those on claims, or those on checks.
    whose, kind
        Whose they are and what: ``the paper's`` and ``claim``.
    """
    found = [verdict.verdict for verdict in verdicts]
    subject = f"{whose} {len(found)} {kind}{'' if len(found) == 1 else 's'}"
    counts = [(name, found.count(name)) for name in VERDICTS if name in found]
    parts = [f"{count} {'is' if count == 1 else 'are'} {name}" for name, count in counts]
    return f"Of {subject}, {_listed(parts)}." if found else ""


def _details(claim: Claim, words: Mapping[str, str]) -> list[str]:
    """Say how rows become the quantity."""
    told = _arguments(claim, words)
    details = {"slope": ", by least squares", "binomial_slope": ", by binomial regression"}
    found = [details.get(claim.test, "")]
    if claim.test == "paired_difference":
        pair = _listed([in_words(name, words) for name in claim.arguments["pair"]])
        found.append(f", {told['treatment']} minus {told['baseline']}, paired by {pair}")
    if "mean_over" in told:
        found.append(f", {told['y']} averaged over {told['mean_over']}s first")
    if claim.replicates:
        each = _listed([in_words(name, words) for name in claim.replicates])
        found.append(f"; one value for each {each}")
    return found


def _arguments(claim: Claim, words: Mapping[str, str]) -> dict[str, str]:
    return {key: in_words(value, words) for key, value in claim.arguments.items()}


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def _raised(match: re.Match[str]) -> str:
    return f"<sup>{_content(match)}</sup>"


def _lowered(match: re.Match[str]) -> str:
    return f"<sub>{_content(match)}</sub>"


def _content(match: re.Match[str]) -> str:
    return next(filter(None, match.groups()), "").replace("-", "−")


# What formulas look like in escaped plain text, and in HTML; replaced in this order.
FORMULAS = (
    (r"\b1(?:\.0*)?e\+?(-?)0*(\d+)\b", r"10^(\1\2)"),
    (r"(\d)e\+?(-?)0*(\d+)\b", r"\1 × 10^(\2\3)"),
    (r"\^(?:\(([^()]*)\)|\{([^{}]*)\}|(\w+))", _raised),
    (r"(?<=\b\w)_(?:\{([^{}]*)\}|(\w)\b)", _lowered),
    (r"(?<![\w.)])-(?=\.?\d)|(?<=\()-(?=\w)|(?<= )-(?= )", "−"),
    (r"&lt;=", "≤"),
    (r"&gt;=", "≥"),
    (r"\|\|", "‖"),
    (r"(?<=\d) %", "\N{NO-BREAK SPACE}%"),
    (rf"\b({'|'.join(GREEK)})\b", lambda match: GREEK[match[0]]),
)
