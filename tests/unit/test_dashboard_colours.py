"""The dashboard's colours can be read: WCAG 2.1 AA, in light and dark."""

import re

import pytest

from trimtab import dashboard

# Text and what is behind it in page.css.
PAIRS = [
    *(("text", back) for back in ("back", "card", "soft")),
    *(("muted", back) for back in ("back", "card", "soft")),
    *((colour, f"{colour}-back") for colour in ("good", "warn", "bad")),
    *((colour, "card") for colour in ("good", "warn", "bad", "accent")),
    ("accent", "info-back"), ("accent", "back"), ("accent-text", "accent"),
]  # fmt: skip


def schemes() -> dict[str, dict[str, str]]:
    """The custom properties of light, and of dark over them."""
    light, dark = re.findall(r":root \{(.*?)\}", dashboard.page()[0].decode(), re.DOTALL)[:2]
    found = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in (light, dark)]
    return {"light": found[0], "dark": found[0] | found[1]}


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, by WCAG's definition."""

    def luminance(colour: str) -> float:
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        red, green, blue = (
            p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(scheme: str) -> None:
    """4.5 to 1 for every text on every back that it has, 3 to 1 for the lines of graphs."""
    colours = schemes()[scheme]
    texts = {(t, b): contrast(colours[t], colours[b]) for t, b in PAIRS}
    lines = {n: contrast(colours[f"c{n}"], colours["card"]) for n in range(8)}

    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert {pair: ratio for pair, ratio in texts.items() if ratio < 4.5} == {}
    assert {line: ratio for line, ratio in lines.items() if ratio < 3} == {}
