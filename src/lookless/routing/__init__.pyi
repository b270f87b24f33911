from .planset import PlanSet as PlanSet
from .routed import RoutedEvaluation as RoutedEvaluation
from .routed import evaluate_routed as evaluate_routed
from .router import Route as Route
from .router import Router as Router
