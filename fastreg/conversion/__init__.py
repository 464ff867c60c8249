"""Models that compute with fastreg, and back: ``fastreg.convert``, ``report`` and ``revert``.

layers     which layers are replaced or recognised, other libraries' among them
drop_path  which of other libraries' drop samples, by their source
source     the source of a forward, as it runs
reading    what its expressions are: steps, or quiet
liveness   where a local name is read for the last time
rewriting  the forward whose steps may hold values back
held       those steps: what is held back, and what it waits for
sites      what is computed together
fusion     the class of a parent with such a forward
reader     the sites of a forward, found without running it
draws      what draws by torch's functions, and stays torch's
"""

from fastreg.conversion.convert import convert, revert
from fastreg.conversion.report import FusedSite, Report, report

__all__ = ["FusedSite", "Report", "convert", "report", "revert"]
