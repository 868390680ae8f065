"""The seven regions of a mesh that spans the world, and which countries lie in which.

Pure tables. A mesh may use other names as well (`penstock up` calls its own "local"): addresses are looked up to these.
Source of the regions: the requirement on geographic clustering; of the codes: ISO 3166-1 alpha-2 and the MMDB continent codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from runtime.ids import Region

ASIA: Final = Region("asia")
NORTH_AMERICA: Final = Region("north-america")
EUROPE: Final = Region("europe")
AFRICA: Final = Region("africa")
SOUTH_AMERICA: Final = Region("south-america")
OCEANIA: Final = Region("oceania")
MIDDLE_EAST: Final = Region("middle-east")

REGIONS: Final = (ASIA, NORTH_AMERICA, EUROPE, AFRICA, SOUTH_AMERICA, OCEANIA, MIDDLE_EAST)

_COUNTRIES: Mapping[Region, str] = {
    ASIA: "AF AM AZ BD BN BT CC CN CX GE HK ID IN IO JP KG KH KP KR KZ LA LK MM MN MO MV MY NP PH PK SG TH TJ TL TM TW UZ VN",
    NORTH_AMERICA: "AG AI AW BB BL BM BQ BS BZ CA CR CU CW DM DO GD GL GP GT HN HT JM KN KY LC MF MQ MS MX NI PA PM PR SV SX TC"
    " TT US VC VG VI",
    EUROPE: "AD AL AT AX BA BE BG BY CH CY CZ DE DK EE ES FI FO FR GB GG GI GR HR HU IE IM IS IT JE LI LT LU LV MC MD ME MK MT"
    " NL NO PL PT RO RS RU SE SI SJ SK SM UA VA",
    AFRICA: "AO BF BI BJ BW CD CF CG CI CM CV DJ DZ EG EH ER ET GA GH GM GN GQ GW KE KM LR LS LY MA MG ML MR MU MW MZ NA NE NG"
    " RE RW SC SD SH SL SN SO SS ST SZ TD TG TN TZ UG YT ZA ZM ZW",
    SOUTH_AMERICA: "AR BO BR BV CL CO EC FK GF GS GY PE PY SR UY VE",
    OCEANIA: "AQ AS AU CK FJ FM GU HM KI MH MP NC NF NR NU NZ PF PG PN PW SB TF TK TO TV UM VU WF WS",
    MIDDLE_EAST: "AE BH IL IQ IR JO KW LB OM PS QA SA SY TR YE",
}
_CONTINENTS: Mapping[str, Region] = {
    "AF": AFRICA,
    "AN": OCEANIA,
    "AS": ASIA,
    "EU": EUROPE,
    "NA": NORTH_AMERICA,
    "OC": OCEANIA,
    "SA": SOUTH_AMERICA,
}
BY_COUNTRY: Mapping[str, Region] = {code: region for region, codes in _COUNTRIES.items() for code in codes.split()}


def region_of(country: str, continent: str = "") -> Region | None:
    """By ISO country code, else by MMDB continent code; None where neither is known."""
    return BY_COUNTRY.get(country.upper()) or _CONTINENTS.get(continent.upper())
