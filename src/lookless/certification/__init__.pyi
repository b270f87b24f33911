from .certificate import Certificate as Certificate
from .certificate import PlanTest as PlanTest
from .certificate import TaskTest as TaskTest
