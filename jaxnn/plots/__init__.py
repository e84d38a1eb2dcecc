"""Figures. Each function takes plain data and returns a matplotlib `Figure`, to be saved with its `savefig`.

Nothing is shown, and pyplot with its global state isn't used: a figure lives as long as the caller holds it, and no
display is needed. matplotlib is imported when the first figure is drawn.
"""

from jaxnn.plots.activations import activations as activations
from jaxnn.plots.confusion import confusion as confusion
from jaxnn.plots.curves import curves as curves
from jaxnn.plots.decision_boundary import PlaneClassifier as PlaneClassifier
from jaxnn.plots.decision_boundary import decision_boundary as decision_boundary
from jaxnn.plots.error_curves import ErrorCurves as ErrorCurves
from jaxnn.plots.error_curves import ValueTable as ValueTable
from jaxnn.plots.error_curves import error_curves as error_curves
from jaxnn.plots.init_variance import init_variance as init_variance
from jaxnn.plots.mistakes import mistakes as mistakes
from jaxnn.plots.optimizer_paths import optimizer_paths as optimizer_paths
from jaxnn.plots.predictions import predictions as predictions
from jaxnn.plots.weights import weights as weights
