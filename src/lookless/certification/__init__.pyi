from .certificate import Certificate as Certificate
from .certificate import PlanTest as PlanTest
from .certificate import TaskTest as TaskTest
from .losses import Loss as Loss
from .losses import drop as drop
from .sequence import Tried as Tried
from .sequence import bound as bound
from .sequence import certify as certify
