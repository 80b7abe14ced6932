from . import data as data
from . import display as display
from . import doctor as doctor
from . import errors as errors
from . import exercises as exercises
from . import handoff as handoff
from . import hardware as hardware
from . import masks as masks
from . import memory as memory
from . import models as models
from . import results as results
from . import scoring as scoring
from . import training as training
from . import widgets as widgets
from .data import load_data as load_data
from .hardware import describe as describe
from .models import load_model as load_model
from .models import load_tokenizer as load_tokenizer
from .models import runner as runner
from .preflight import preflight as preflight

__version__: str
