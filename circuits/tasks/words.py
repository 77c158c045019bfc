"""Words that several tasks fill their templates with."""

from __future__ import annotations

FEMALE = """
    Mary Anna Emma Alice Sarah Laura Julia Kate Jane Lucy Rachel Susan Lisa Amy Helen Ruth Claire
    Emily Grace Rose Linda Karen Nancy Carol Diane Maria Sophie Chloe Megan Molly Lily Ella
""".split()

MALE = """
    John James David Paul Mark Peter Simon Tom Jack Henry Adam Robert Michael Thomas George Daniel
    Kevin Brian Steven Andrew Martin Frank Oscar Max Ryan Scott Eric Jason Charlie Tim Sam Ben
""".split()

PLACES = """
    station market garden school river harbour office library museum theatre hotel farm bakery
    bridge beach church hospital factory
""".split()
