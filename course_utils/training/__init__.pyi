from ._checkpoints import last_checkpoint as last_checkpoint
from ._cpu import faster_on_cpu as faster_on_cpu
from ._curves import LiveLosses as LiveLosses
from ._curves import curves as curves
from ._curves import plot_losses as plot_losses
from ._curves import watch as watch
