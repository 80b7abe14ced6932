from ._base import WithFallback as WithFallback
from ._memory_calculator import memory_calculator as memory_calculator
from ._playground import playground as playground
from ._rating import rating as rating
from ._translator import translator as translator
