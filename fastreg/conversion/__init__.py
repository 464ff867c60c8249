"""Models that compute with fastreg, and back: ``fastreg.convert``, ``report`` and ``revert``.

layers    which layers are replaced or recognised, other libraries' among them
classes   classes made at run time, that pickle
tracing   a module's forward as a graph, or the reason why not
patterns  the sites in a graph that one function computes
sites     what such a site computes
plans     a forward with its sites, compiled, and what has to hold for it
fusion    the class of a parent that uses plans
"""

from fastreg.conversion.convert import convert, revert
from fastreg.conversion.report import FusedSite, Report, report

__all__ = ["FusedSite", "Report", "convert", "report", "revert"]
